"""Where the two-stream objectives PIM and MaPeT cut the permutation into shown patches and targets."""

from pydantic import Field

from models.errors import ModelError
from models.options import Options


class TwoStreamOptions(Options):
    """Where a random order of the patches is cut: what comes before is shown, what comes after is predicted."""

    cutting_point: int = Field(default=50, ge=0, le=2**20)
    """Rows before the cut; the paper's best is 50 for ViT-T and ViT-S, 60 for ViT-B."""

    counts_class_token: bool = True
    """True: the class token is one of these rows, as in the released code (50 leaves 147 targets of 196).
    False: only patches count, the paper's literal reading (50 leaves 146)."""


def count_targets(options: TwoStreamOptions, *, patches: int) -> int:
    """T, the patches after the cut.

    Raises:
        ModelError: no patch, or more than all, would be a target.
    """
    targets = patches - options.cutting_point + options.counts_class_token
    if 1 <= targets <= patches:
        return targets
    least = int(options.counts_class_token)
    raise ModelError(
        f"cutting_point {options.cutting_point} does not cut {patches} patches into shown ones and targets; "
        f"choose one from {least} to {patches - 1 + least}"
    )
