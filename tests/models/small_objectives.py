"""Objectives with a tiny backbone, and a batch for them."""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.masking import corruption_seeds
from models.objectives import OBJECTIVES
from models.objectives.base import Objective

VOCABULARY = 64

IMAGE, PATCH, GRID = 40, 4, 10  # 100 patches: the options of every objective hold as they are


def tiny_backbone(*, drop_path: float = 0.1) -> VisionTransformer:
    return VisionTransformer(
        img_size=IMAGE,
        patch_size=PATCH,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=0,
        init_values=0.1,
        drop_path_rate=drop_path,
    )


def build(name: str, *, drop_path: float = 0.1) -> Objective:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = tiny_backbone(drop_path=drop_path)
    known = OBJECTIVES[name]
    return known.load()(backbone, VOCABULARY, known.options_class(), seed=0)


def batch(size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, IMAGE, IMAGE, generator=generator)
    tokens = torch.randint(0, VOCABULARY, (size, GRID**2), generator=generator)
    return images, tokens, corruption_seeds(0, 0, torch.arange(size))
