"""Backbones as folders that timm reads."""

from pathlib import Path

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.vit.options import BackboneOptions
from models.weights.timm_files import save_backbone

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)  # not ImageNet's: a test must notice when they are not read


def save(model: VisionTransformer, options: BackboneOptions, folder: Path, **more: object) -> Path:
    save_backbone(model, options, folder, mean=MEAN, std=STD, **more)
    return folder


def in_timm(folder: Path, **arguments: object) -> VisionTransformer:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **arguments).eval()


def images(size: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
