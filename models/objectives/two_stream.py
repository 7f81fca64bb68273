"""Where the two-stream objectives PIM and MaPeT cut the permutation into shown patches and targets."""

from models.errors import ModelError
from models.objectives.options import TwoStreamOptions


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
