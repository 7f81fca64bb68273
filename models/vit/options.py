"""The choices of a backbone: a shape of the paper (DeiT's, arXiv:2012.12877) or the demo's."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

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
