"""What a command writes where the user says (`--to`): new, whole or absent, and nothing beside it is touched.

It is made under a name of its own in the same folder and takes its name at the end, so what is removed after a failure
is never somebody else's.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Literal

from pipeline.engine.errors import PipelineError
from storage.files import TEMPORARY, sync

Kind = Literal["directory", "file"]


def require_new(to: Path, kind: Kind) -> None:
    """Ask before long work whether `to` can be made.

    Raises:
        PipelineError: it exists, lies below a file, or in a folder that may not be written to.
    """
    if os.path.lexists(to):
        raise PipelineError(f"{to} exists; name a {kind} that does not")
    above = next(parent for parent in to.absolute().parents if os.path.exists(parent))  # whose own `exists` may raise
    if not above.is_dir():
        raise PipelineError(f"{to} cannot be made: {above} is a file; name a {kind} in a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PipelineError(f"{to} cannot be made: you may not write to {above}; name a {kind} elsewhere")


@contextmanager
def new_directory(to: Path) -> Iterator[Path]:
    """Yield an empty folder; when the block succeeds it becomes `to`, else it is removed.

    Raises:
        PipelineError: as `require_new`, also of a `to` that has appeared meanwhile.
    """
    require_new(to, "directory")
    to.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(to)
    beside.mkdir()
    try:
        yield beside
        require_new(to, "directory")
        beside.rename(to)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def new_file(to: Path) -> Iterator[Path]:
    """Yield the path of a file to write; when the block succeeds it becomes `to`. Raises as `new_directory`."""
    require_new(to, "file")
    to.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(to)
    try:
        yield beside
        sync(beside)
        require_new(to, "file")
        beside.rename(to)
    finally:
        beside.unlink(missing_ok=True)


def _beside(to: Path) -> Path:
    return to.with_name(f"{to.name}.{os.getpid()}-{token_hex(4)}{TEMPORARY}")
