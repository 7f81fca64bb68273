"""Which run of the tracker an unfinished artifact is built in, kept beside its beginnings, here and on the remote.

Whoever goes on with these beginnings, on whatever machine, goes on in that run. Nothing that is wrong with what is kept
is raised: without it a new run begins, and the result is the same.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.artifact import BUILDING
from storage.errors import StorageError
from storage.files import write_json
from storage.remote_folder import RemoteFolder

logger = logging.getLogger("mapet.stages")


@dataclass(frozen=True)
class KeptRun:
    """The id in the folder of an unfinished artifact, and in its mirror on the remote if there is one."""

    folder: Path
    remote: RemoteFolder | None = None

    def ids(self) -> Iterator[str]:
        """Yield the ids that are kept, this machine's first; the remote is asked only if somebody wants one more."""
        yield from self._here()
        yield from self._there()

    def keep(self, run_id: str) -> None:
        """Write the id down here and on the remote, unless the artifact was published meanwhile."""
        if not self.folder.is_dir():
            return
        try:
            write_json(self.folder / BUILDING, {"tracking_run": run_id})
            if self.remote:
                self.remote.write(BUILDING, (self.folder / BUILDING).read_bytes())
        except (OSError, StorageError) as error:
            logger.warning("if this is stopped, it may go on in another run of the tracker: %s", error)

    def _here(self) -> Iterator[str]:
        path = self.folder / BUILDING
        try:
            yield from _id_in(path.read_bytes(), str(path))
        except FileNotFoundError:
            return
        except OSError as error:
            logger.warning("%s: which run of the tracker this was begun in is not known", error)

    def _there(self) -> Iterator[str]:
        try:
            found = self.remote.read(BUILDING) if self.remote else None
        except StorageError as error:
            logger.warning("which run of the tracker this was begun in is not known: %s", error)
            return
        if self.remote and found is not None:
            yield from _id_in(found, f"{self.remote.url}/{BUILDING}")


def _id_in(content: bytes, where: str) -> Iterator[str]:
    try:
        found = json.loads(content)["tracking_run"]
    except (ValueError, KeyError, TypeError):
        found = None
    if isinstance(found, str) and found:
        yield found
    else:
        logger.warning("%s: expected the id of a run of the tracker, found %.40r; it is passed over", where, content)
