"""The choices of each objective, which need no torch. A class's docstring is what help and forms call its section."""

from pydantic import Field

from models.options import Options


class MIMOptions(Options):
    """Masked image modelling."""

    masked: int = Field(default=75, ge=1, le=2**20)
    """Patches of every image that are hidden and predicted; 75 of 196 as in the released code."""


class TwoStreamOptions(Options):
    """Where a random order of the patches is cut: what comes before is context, what comes after is predicted."""

    cutting_point: int = Field(default=50, ge=0, le=2**20)
    """Rows before the cut; the paper's best is 50 for ViT-T and ViT-S, 60 for ViT-B."""

    counts_class_token: bool = True
    """True: the class token is one of these rows, as in the released code (50 leaves 147 predicted patches of 196).
    False: only patches count, the paper's literal reading (50 leaves 146)."""


class PIMOptions(TwoStreamOptions):
    """Permuted image modelling."""


class MaPeTOptions(TwoStreamOptions):
    """Masked and permuted pre-training."""


class BEiTOptions(MIMOptions):
    """Masked image modelling with block-wise masks."""

    min_block: int = Field(default=16, ge=1, le=2**20)
    """Least area of a block in patches; at most a quarter of the masked patches is used, for small grids."""


class CAEOptions(Options):
    """Context autoencoder."""

    masked: int = Field(default=98, ge=1, le=2**20)
    """Patches of every image that are hidden and predicted; 98 of 196, half of them, as in CAE."""

    min_block: int = Field(default=16, ge=1, le=2**20)
    """Least area of a masked block in patches; at most a quarter of the masked patches is used, for small grids."""

    regressor_depth: int = Field(default=4, ge=1, le=1000)
    """Blocks of cross attention that predict the features of masked patches."""

    decoder_depth: int = Field(default=4, ge=0, le=1000)
    """Blocks of self-attention between that prediction and the head."""

    alignment_weight: float = Field(default=2.0, ge=0, le=1e6)
    """Weight of the distance between predicted features and the encoder's own."""

    layer_scale: float = Field(default=0.1, gt=0, le=100)
    """Initial LayerScale of regressor and decoder."""
