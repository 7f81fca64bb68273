"""VQ-KD tokens: the code nearest to a patch in BEiT v2's tokenizer (Peng et al. 2022, arXiv:2208.06366, section 2.2).

    z = l2(W2 tanh(W1 f + b1) + b2),   token = argmax_k  z.c_k = argmin_k ||z - c_k||^2   for unit z and c_k

The features f are a Vision Transformer's, `fc_norm` over its patches. Task layer and scores are computed in float32
whatever the encoder computes in: codes are short (32 channels) and many (8192), rounding would turn tokens.

Pixels 0..255 are mapped to [-1, 1] whatever they are. (The released code guesses their scale: it multiplies a batch by
255 unless a value exceeds 1, as none does in a dark image of 8 bits.)
"""

import logging
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, UInt8
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from models.encoders.arithmetic import arithmetic, normalised, require_pixels
from models.encoders.preprocessing import Preprocessing
from models.errors import ModelError
from models.tokenizers.base import Tokenizer
from models.vqkd.checkpoint import VQKDParts, build_vqkd, read_vqkd
from models.vqkd.codebook import BLOCK_NUMBERS, nearest_codes
from models.vqkd.options import PUBLISHED, VQKDOptions, VQKDSizes
from models.weights.digests import network_digest
from models.weights.published_files import published_file

logger = logging.getLogger(__name__)

HALF = (0.5, 0.5, 0.5)


class VQKDTokenizer(Tokenizer):
    """Encoder, task layer and codebook as one, frozen: always in evaluation mode, without gradients.

    A patch whose code is not finite gets -1 instead of a token. The parts are taken over, not copied.

    Args:
        parts: encoder, task layer and codebook of unit rows, all on one device.
        precision: as in the options.

    Raises:
        ModelError: the task layer's codes are not as wide as the codebook's.
    """

    encoder: VisionTransformer
    task_layer: nn.Sequential
    codebook: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        parts: VQKDParts,
        *,
        precision: Literal["fp32", "fp16", "bf16"] = "fp16",
        compile_encoder: bool = False,
    ):
        super().__init__()
        if parts.task_layer[-1].out_features != parts.codebook.shape[1]:
            raise ModelError(
                f"codebook {list(parts.codebook.shape)} does not belong to a task layer with "
                f"{parts.task_layer[-1].out_features} channels; take both from one checkpoint"
            )
        self.name = "vqkd"
        self.encoder = parts.encoder
        self.task_layer = parts.task_layer
        self.register_buffer("codebook", parts.codebook.detach())
        self.eval().requires_grad_(False)
        self.vocabulary = len(parts.codebook)
        height, width = parts.encoder.patch_embed.grid_size
        self.grid = (height, width)
        self.precision = precision
        self.preprocessing = Preprocessing(parts.encoder.patch_embed.img_size[0], HALF, HALF)
        self.digest = self._digest()
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.preprocessing, name), device=parts.codebook.device)
            self.register_buffer(name, values.view(3, 1, 1), persistent=False)
        self._run_encoder = torch.compile(self._features) if compile_encoder else self._features

    def _digest(self) -> str:
        """Hash the tensors of all three parts and what their shapes do not tell; "" on the meta device."""
        if self.codebook.is_meta:
            return ""
        heads = [module.num_heads for module in self.encoder.modules() if isinstance(module, Attention)]
        choices = {"heads": heads, "precision": self.precision, "preprocessing": str(self.preprocessing)}
        return network_digest(self, choices)

    def train(self, mode: bool = True) -> "VQKDTokenizer":
        """Stay frozen: a token must not depend on chance."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "B 3 side side"]) -> Int[Tensor, "B N"]:
        """Tokenize as the contract says.

        Raises:
            ModelError: not 8-bit, or not of `preprocessing.image_size`.
        """
        require_pixels(images, self.preprocessing.image_size, name=self.name)
        with arithmetic(self.precision, images.device):
            features = self._run_encoder(normalised(images, self.mean, self.std))
        with arithmetic("fp32", images.device):
            return self._nearest(F.normalize(self.task_layer(features.float()), dim=-1))

    def _features(self, pixels: Float[Tensor, "B 3 side side"]) -> Float[Tensor, "B N D"]:
        patches = self.encoder.forward_features(pixels)[:, self.encoder.num_prefix_tokens :]
        return self.encoder.fc_norm(patches)

    def _nearest(self, codes: Float32[Tensor, "B N code"]) -> Int[Tensor, "B N"]:
        """Return the lowest id with the largest cosine. (An infinite feature is NaN after the norm, and remains so.)"""
        return nearest_codes(codes.flatten(0, 1), self.codebook, at_once=BLOCK_NUMBERS).view(codes.shape[:2])


def outline_vqkd(options: VQKDOptions, sizes: VQKDSizes) -> VQKDTokenizer:
    """Build a tokenizer of these sizes on the meta device. Raises ModelError when they do not fit the image."""
    return VQKDTokenizer(build_vqkd(sizes, image_size=options.image_size), precision=options.precision)


def load_vqkd(
    options: VQKDOptions, *, device: torch.device | str = "cpu", compile_encoder: bool = False
) -> VQKDTokenizer:
    """Load the tokenizer with its weights onto `device`; `compile_encoder` trades a first slow batch for speed.

    Raises:
        ModelError: the checkpoint cannot be had or is none of a VQ-KD; says what is wrong with it.
    """
    path = published_file(options.checkpoint, published=PUBLISHED, option="vqkd.checkpoint")
    parts = read_vqkd(path, image_size=options.image_size)
    tokenizer = VQKDTokenizer(parts, precision=options.precision, compile_encoder=compile_encoder)
    device = torch.device(device)
    if device.type != "cuda" and options.precision == "fp16":
        logger.info("%s: fp16 needs a GPU; on %s the encoder computes in fp32", path.name, device)
    return tokenizer.to(device)
