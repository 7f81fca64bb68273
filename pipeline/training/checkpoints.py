"""Checkpoints of a run: whole or absent, with a checksum each, the last few kept.

step-00001000.pt      everything that the next step depends on
step-00001000.json    its SHA-256, written after it: without this file it does not count

With a remote they are there as well, in the same order, so that another machine can go on where this one died.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.weights.state_files import write_checkpoint
from storage.errors import RemoteDamaged, RemoteUnavailable, StorageError
from storage.files import write_whole
from storage.recorded_files import RecordedFiles
from storage.remote_folder import RemoteFolder

logger = logging.getLogger("mapet.training")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in `folder`, and in `remote` if there is one, of which the newest `keep` stay."""

    folder: Path
    keep: int
    remote: RemoteFolder | None = None

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.pt"
        with RecordedFiles.beside(path).write(path.name, step=step) as (temporary,):
            write_checkpoint(temporary, state)
        for old in self._newest_first()[self.keep :]:
            old.with_suffix(".json").unlink(missing_ok=True)  # first: the file counts no more
            old.unlink()
        if self.remote:
            try:
                self._upload(self.remote, path)
            except StorageError as error:  # hours of training are worth more than a copy; the next one may arrive
                logger.warning("the checkpoint of step %d is on this machine only: %s", step, error)

    def fetch(self) -> None:
        """Take over the remote's newest intact checkpoint, if it is newer than those that are here.

        A remote that does not answer costs the steps that it may know and this machine does not, and nothing else.
        """
        try:
            self._fetch()
        except RemoteUnavailable as error:
            logger.warning("going on with the checkpoints of this machine: %s", error)

    def _fetch(self) -> None:
        if self.remote is None:
            return
        here = next((path.name for path in self._newest_first() if RecordedFiles.beside(path).read()), "")
        for name in sorted(self.remote.sizes(), reverse=True):
            path = self.folder / Path(name).with_suffix(".pt").name
            if name.endswith(".json") and path.name > here:
                try:
                    self._download(self.remote, path)
                    return
                except (RemoteDamaged, ValueError, KeyError, TypeError, AttributeError) as error:
                    logger.warning("%s/%s: damaged; taking the one before (%s)", self.remote.url, path.name, error)

    def latest(self, device: torch.device) -> dict[str, Any] | None:
        """Return the state of the newest intact checkpoint, on the device; None if there is none."""
        for path in self._newest_first():
            if RecordedFiles.beside(path).read():
                return dict(torch.load(path, map_location=device, weights_only=True))
            logger.warning("%s: damaged or unfinished, its checksum does not match; taking the one before", path)
        return None

    def _upload(self, remote: RemoteFolder, path: Path) -> None:
        record = RecordedFiles.beside(path).record
        remote.remove((record.name, path.name))  # of another run of the same step: not a byte of it may stay
        remote.upload(self.folder, {path.name: json.loads(record.read_bytes())})
        remote.write(record.name, record.read_bytes())
        kept = {name for path in self._newest_first() for name in (path.name, path.with_suffix(".json").name)}
        remote.remove(sorted(remote.sizes().keys() - kept))  # .json sorts before .pt

    def _download(self, remote: RemoteFolder, path: Path) -> None:
        record = RecordedFiles.beside(path).record
        content = remote.read(record.name) or b""
        remote.download({path.name: json.loads(content)}, self.folder)
        write_whole(record, content)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"), reverse=True)
