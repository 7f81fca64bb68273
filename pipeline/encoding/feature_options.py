"""The choices of the stage `extract_features`."""

from typing import Literal

from pydantic import Field

from models.options import Options


class FeatureOptions(Options):
    """Which patch features are kept."""

    sample_fraction: float = Field(default=0.02, gt=0, le=1)
    """Share of all patches that k-means clusters (the paper: 2 %)."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the keyed sample."""

    splits: tuple[str, ...] = Field(default=("train",), min_length=1)
    """Splits that are sampled; tokens are made for all of them."""

    keep: Literal["sample", "all"] = "sample"
    """`all` stores every feature of those splits (8 kB a patch for RN50x64: 2 TB for ImageNet)."""
