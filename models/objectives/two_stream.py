"""Where the two-stream objectives PIM and MaPeT cut the permutation into context and predicted patches."""

from models.errors import ModelError
from models.objectives.options import TwoStreamOptions


def count_predicted(options: TwoStreamOptions, *, patches: int) -> int:
    """Return P, the patches after the cut.

    Raises:
        ModelError: no patch, or more than all, would be predicted.
    """
    predicted = patches - options.cutting_point + options.counts_class_token
    if 1 <= predicted <= patches:
        return predicted
    least = int(options.counts_class_token)
    raise ModelError(
        f"cutting_point {options.cutting_point} does not cut {patches} patches into context and predicted ones; "
        f"choose one from {least} to {patches - 1 + least}"
    )
