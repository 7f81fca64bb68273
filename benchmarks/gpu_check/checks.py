"""What a step of the check is made of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "measured", "left out", "timed out"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `value` in `unit`, where it is a number; `note`: against what, or why."""

    name: str
    status: Status
    value: float | None = None
    unit: str = ""
    note: str = ""


def passed_if(right: bool, name: str, *, value: float | None = None, unit: str = "", note: str = "") -> Check:
    return Check(name, "passed" if right else "failed", value, unit, note)


@dataclass(frozen=True)
class Setup:
    """On what, and how much. `quick`: sizes that take seconds anywhere, whose numbers mean nothing."""

    device: str
    quick: bool = False

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full


Attempt = tuple[str, Callable[[], Iterator[Check]]]
"""A part of a step by name: what it yields is recorded at once, what it raises becomes a failed check of that name."""
