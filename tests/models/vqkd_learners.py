"""A small VQ-KD that learns, and images for it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.encoders.base import PatchEncoder
from models.vqkd.learner import VQKDLearner
from models.vqkd.options import VQKDCodebookOptions, VQKDNetworkOptions

SMALL = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 1, "decoder_depth": 1}

SMALL |= {"vocabulary": 24, "code_width": 8}

SEEDS = torch.arange(6)


def learner_of(teacher: PatchEncoder, *, seed: int = 0, commitment: float = 1.0, **network: int) -> VQKDLearner:
    options = VQKDNetworkOptions.model_validate({**SMALL, **network})
    return VQKDLearner(options, VQKDCodebookOptions(commitment=commitment, decay=0.9), teacher, seed=seed)


def images(count: int = 6, size: int = 64) -> Tensor:
    """Smooth pictures: patches that differ."""
    generator = torch.Generator().manual_seed(1)
    coarse = 255 * torch.rand(count, 3, 6, 6, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bilinear").to(torch.uint8)
