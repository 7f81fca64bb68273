"""The choices of a segmentation network."""

from typing import Annotated

from pydantic import Field

from models.options import Options

BlockNumber = Annotated[int, Field(ge=0, lt=1000)]


class SegmenterOptions(Options):
    """UperNet on a Vision Transformer."""

    image_size: int = Field(default=512, ge=1, le=4096)
    """Pixels per side of what the network sees: the crop of training and the window of inference (Table 10: 512)."""

    blocks: tuple[BlockNumber, BlockNumber, BlockNumber, BlockNumber] = (3, 5, 7, 11)
    """The blocks, counted from 0, whose rows become the pyramid's levels from fine to coarse."""

    channels: int | None = Field(default=None, ge=1, le=65_536)
    """Width of the head; as wide as the backbone unless given, as BEiT v2 does for ViT-B."""

    pool_scales: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (1, 2, 3, 6)
    """Squares per side of every pooling of the coarsest level."""

    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of channels that are left out before each classifier."""

    auxiliary_channels: int = Field(default=256, ge=1, le=65_536)
    """Width of the auxiliary head."""

    auxiliary_weight: float = Field(default=0.4, ge=0, le=1e6)
    """Weight of the auxiliary head's loss beside 1 for the main head's."""
