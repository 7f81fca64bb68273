"""The contract of a patch encoder: an image becomes a grid of features, one for each patch."""

import logging
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float16, UInt8
from torch import Tensor, nn

from models.encoders.preprocessing import Preprocessing

logger = logging.getLogger(__name__)


class PatchEncoder(nn.Module, ABC):
    """Images in, patch features out; frozen, always in evaluation mode, without gradients.

    What k-means clusters, and what a VQ-KD learns to predict.

    Attributes:
        name: the word used in reports and errors.
        preprocessing: the square of pixels `forward` wants; the normalisation is the encoder's own.
        grid: patches per column and row; N is their product, patches in raster order.
        width: D, the numbers of a feature.
        precision: arithmetic on a GPU; part of the result, not of the digest.
        digest: SHA-256 of the weights and of what their shapes do not tell; "" on the meta device.
    """

    name: str
    preprocessing: Preprocessing
    grid: tuple[int, int]
    width: int
    precision: str
    digest: str

    def train(self, mode: bool = True) -> "PatchEncoder":
        """Stay frozen: batch statistics would make a feature depend on its neighbours in the batch."""
        return super().train(False)

    @abstractmethod
    def forward(self, images: UInt8[Tensor, "B 3 side side"]) -> Float16[Tensor, "B N D"]:
        """Encode 8-bit RGB images; features are rounded to float16, as a store keeps and k-means sees them.

        A value that does not fit becomes inf; whether to ask `torch.isfinite`, and when to wait for it, is the
        caller's choice.

        Raises:
            ModelError: not 8-bit, or not of `preprocessing.image_size`.
        """

    def on(self, device: torch.device) -> "PatchEncoder":
        """Move it to a device, in the layout that is fast there; says where its precision cannot be had."""
        if device.type == "cuda":
            self.to(memory_format=torch.channels_last)
        elif self.precision == "fp16":
            logger.info("%s: fp16 needs a GPU; on %s the network computes in fp32", self.name, device)
        return self.to(device)

    @property
    def device(self) -> torch.device:
        """The device that its tensors are on."""
        return next(tensor for tensor in (*self.parameters(), *self.buffers())).device
