"""From 8-bit pixels to what a Vision Transformer sees, on the device: a quarter of the bytes travel to it."""

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn


class Normalisation(nn.Module):
    """`(pixel / 255 - mean) / std`, standardised as ImageNet's: uint8 [B, 3, H, W] -> float [B, 3, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_DEFAULT_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_DEFAULT_STD)[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.mean.dtype).div(255).sub_(self.mean).div_(self.std)
