"""Stock timm Vision Transformers, built from options and a seed.

Class token, learned 1-D positions, LayerScale, stochastic depth growing linearly with depth; nothing is added or
replaced, so the trained weights load strictly into `timm.create_model`. The shapes T, S and B are the paper's
(DeiT's, arXiv:2012.12877); `vit_demo` is small enough for a CPU.

Initialisation is timm's, which is the released MaPeT's too: linear weights, positions and tokens from a normal
distribution of 0.02 cut at +-2, biases 0, the class token from a normal distribution of 1e-6, the patch convolution
as PyTorch does it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from timm.models.vision_transformer import VisionTransformer

from models.errors import ModelError
from models.options import Options


@dataclass(frozen=True)
class BackboneShape:
    """What distinguishes one Vision Transformer from another; the MLP is always 4 widths wide."""

    width: int
    depth: int
    heads: int


SHAPES = {
    "vit_tiny": BackboneShape(width=192, depth=12, heads=3),
    "vit_small": BackboneShape(width=384, depth=12, heads=6),
    "vit_base": BackboneShape(width=768, depth=12, heads=12),
    "vit_demo": BackboneShape(width=64, depth=4, heads=4),
}


class BackboneOptions(Options):
    """A Vision Transformer."""

    name: Literal["vit_tiny", "vit_small", "vit_base", "vit_demo"] = "vit_base"
    """The shape: T, S and B of the paper (192, 384 and 768 wide), or the demo's (64 wide, 4 blocks)."""

    image_size: int = Field(default=224, ge=1, le=4096)
    """Pixels per side of the square image."""

    patch_size: int = Field(default=16, ge=1, le=4096)
    """Pixels per side of a patch; (image_size / patch_size)^2 patches must equal the tokens of an image."""

    drop_path_rate: float = Field(default=0.1, ge=0, lt=1)
    """Stochastic depth: the chance of leaving a branch of the last block out; it grows linearly from 0 (Table 8)."""

    layer_scale: float = Field(default=0.1, ge=0, le=100)
    """Initial LayerScale of every branch; 0 builds the network without LayerScale (the paper: 0.1)."""


def build_backbone(options: BackboneOptions, *, seed: int, classes: int = 0) -> VisionTransformer:
    """A freshly initialised backbone on the CPU: the same weights for the same options and seed.

    The global random state is left as it was found.

    Args:
        classes: 0 for the backbone alone; else it ends in the mean of its patches, a norm and a head (`fc_norm`, `head`
            of timm's `global_pool="avg"`) in place of the final norm.

    Raises:
        ModelError: the image is not a whole number of patches.
    """
    if options.image_size % options.patch_size:
        raise ModelError(
            f"backbone.image_size {options.image_size} is not a multiple of backbone.patch_size {options.patch_size}; "
            "choose sizes that divide"
        )
    shape = SHAPES[options.name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
        return VisionTransformer(
            img_size=options.image_size,
            patch_size=options.patch_size,
            embed_dim=shape.width,
            depth=shape.depth,
            num_heads=shape.heads,
            num_classes=classes,
            global_pool="avg" if classes else "token",
            init_values=options.layer_scale or None,
            drop_path_rate=options.drop_path_rate,
        )
