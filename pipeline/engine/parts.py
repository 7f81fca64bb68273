"""What the time of a stage went into: its parts, how much of each was done, and in how many seconds.

An artifact's notes have it under "parts", and `mapet plan` prices the next stage of its kind by it, part by part: an
evaluation that computes features and then trains heads on them is neither as fast as the one nor as the other. What
belongs to no part (loading weights, writing) is the rest of the stage's seconds, and is taken to stay the same.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.engine.stage_record import BuildNotes


@dataclass
class Parts:
    """`timed` measures; a part that is entered again adds up."""

    _amounts: dict[str, float] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str, amount: float) -> Iterator[None]:
        """Time a part. `amount`: of whatever the part's time grows with, mostly images."""
        started = time.monotonic()
        yield
        self.add(name, amount, time.monotonic() - started)

    def add(self, name: str, amount: float, seconds: float) -> None:
        self._amounts[name] = self._amounts.get(name, 0) + amount
        self._seconds[name] = self.seconds(name) + seconds

    def seconds(self, name: str) -> float:
        return self._seconds.get(name, 0.0)

    def rate(self, name: str) -> float:
        """Return the amount per second."""
        return round(self._amounts.get(name, 0) / max(self.seconds(name), 1e-9), 2)

    def notes(self, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return an artifact's notes; `before`: those of a part of the work, whose parts are kept."""
        parts = {
            name: {"amount": amount, "seconds": round(self._seconds[name], 4)} for name, amount in self._amounts.items()
        }
        earlier = dict(before or {})
        return {**earlier, "parts": {**earlier.get("parts", {}), **parts}}


def seconds_of(parts: Mapping[str, float], notes: BuildNotes) -> float | None:
    """Estimate the seconds of a stage that does so much of each part, by the notes of one that was made; None where
    these do not tell."""
    measured, wanted = notes.parts, {name: amount for name, amount in parts.items() if amount}
    if notes.seconds is None or any(name not in measured or not measured[name].amount for name in wanted):
        return None
    rest = max(notes.seconds - sum(part.seconds for part in measured.values()), 0.0)
    return rest + sum(amount * measured[name].seconds / measured[name].amount for name, amount in wanted.items())
