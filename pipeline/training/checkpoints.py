"""Checkpoints of a run: whole or absent, with a checksum each, the last few kept.

step-00001000.pt      everything that the next step depends on
step-00001000.json    its SHA-256, written after it: without this file it does not count
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from storage.files import replace_file, sha256_file, write_json

logger = logging.getLogger("mapet.training")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in `folder`, of which the newest `keep` stay."""

    folder: Path
    keep: int

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(step)
        self._record(path).unlink(missing_ok=True)
        with replace_file(path) as temporary:
            torch.save(dict(state), temporary)
        write_json(self._record(path), {"sha256": sha256_file(path), "step": step})
        for old in self._newest_first()[self.keep :]:
            self._record(old).unlink(missing_ok=True)
            old.unlink()

    def latest(self, device: torch.device) -> dict[str, Any] | None:
        """The state of the newest intact checkpoint, on the device; None if there is none."""
        for path in self._newest_first():
            if self._is_intact(path):
                state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
                return state
            logger.warning("%s: damaged or unfinished, its checksum does not match; taking the one before", path)
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"

    @staticmethod
    def _record(path: Path) -> Path:
        return path.with_suffix(".json")

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"), reverse=True)

    def _is_intact(self, path: Path) -> bool:
        try:
            expected = json.loads(self._record(path).read_text())["sha256"]
        except (OSError, ValueError, KeyError):
            return False
        return bool(expected == sha256_file(path))
