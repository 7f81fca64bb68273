"""Numbers that are known to Python and wanted on a device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def constant(values: Sequence[Any], *, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Put `torch.tensor(values)` on a device without waiting for it.

    With `device=` torch would copy and then wait, in every step of a training, until a GPU has done all it was asked.
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
