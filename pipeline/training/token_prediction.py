"""What pre-training trains: an objective, fed with 8-bit pixels that it jitters and normalises on the device."""

from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from models.encoders.preprocessing import Preprocessing
from models.objectives.base import Objective, ObjectiveOutput
from pipeline.data.augmentation import colour_jitter


def pretraining_square(image_size: int) -> Preprocessing:
    """Return the square that CLIP saw, at the backbone's size, with the paper's normalisation (ImageNet's)."""
    return Preprocessing(image_size, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


class TokenPrediction(nn.Module):
    """`(pixels uint8 [B, 3, side, side], tokens [B, N], seeds int64 [B]) -> ObjectiveOutput`."""

    def __init__(self, objective: Objective, preprocessing: Preprocessing, *, jitter: float) -> None:
        super().__init__()
        self.objective = objective
        self.jitter = jitter
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor, tokens: Tensor, seeds: Tensor) -> ObjectiveOutput:
        images = pixels.float() / 255
        if self.training:
            images = colour_jitter(images, seeds, self.jitter)
        output: ObjectiveOutput = self.objective((images - self.mean) / self.std, tokens, seeds)
        return output

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Let matrices decay, and the mask token as in the released code; not positions and class token."""
        spared = [f"objective.backbone.{name}" for name in self.objective.backbone.no_weight_decay()]
        groups: list[dict[str, Any]] = param_groups_weight_decay(self, weight_decay, no_weight_decay_list=spared)
        return groups
