"""The curves of a training run: one JSON object per line, by step, in the order in which they were measured.

Only what the run computed (loss, accuracy, learning rate, ...); how fast it was depends on the machine and is not here.
"""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HISTORY = "history.jsonl"
logger = logging.getLogger("mapet.stages")


class History:
    """An append-only file in the folder of a run."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / HISTORY

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forget what was measured after `step`, and return the rest: a resumed run measures it again."""
        kept = [entry for entry in _entries(self._path) if entry["step"] <= step]
        self._path.write_text("".join(map(_line, kept)))
        return kept

    def text(self) -> str:
        """Return all of it, for a checkpoint."""
        return "".join(map(_line, _entries(self._path)))

    def restore(self, text: str) -> None:
        """Take a checkpoint's, which a machine that has lost its own, or never had one, goes on from."""
        self._path.write_text(text)

    def append(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(_line({"step": step, "epoch": epoch, **values}))

    def sync(self) -> None:
        """Bring it to the disk; a checkpoint that follows then never knows more than the history."""
        with self._path.open("a") as file:
            os.fsync(file.fileno())


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return `[{"step": 50, "epoch": 0.4, "loss": 4.8, ...}, ...]` of a finished run."""
    return _entries(folder / HISTORY)


def last_of_curves(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return for the summary of a finished run its `steps`, and the last point of each curve that has one. A point that
    is no number (a validation may overflow where no step of the training did) is left out, which is said: no record
    holds it."""
    last: dict[str, Any] = {}
    for entry in read_history(folder):
        last |= entry
    points = {name: float(last[name]) for name in names if name in last}
    if wrong := [name for name, value in points.items() if not math.isfinite(value)]:
        logger.warning("%s at the end of the training is not finite and is left out", ", ".join(wrong))
    return {"steps": last["step"], **{name: round(value, 6) for name, value in points.items() if math.isfinite(value)}}


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def _entries(path: Path) -> list[dict[str, Any]]:
    """Return all whole lines; a killed run may have left half of one at the end."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
