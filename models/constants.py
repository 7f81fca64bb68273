"""Numbers that are known to Python and wanted on a device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def constant(values: Sequence[Any], *, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return `torch.tensor(values)` on a device, without a wait: with `device=` torch would copy and then look until a
    GPU has done all that it was asked for, in every step of a training."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
