"""Find files below a directory, by extension: one `scandir` per directory, one `stat` per wanted file."""

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.data.formats import ending_of
from pipeline.data.sources.names import is_hidden
from pipeline.engine.errors import PipelineError


class FoundFile(NamedTuple):
    path: str  # relative to the root, posix
    bytes: int  # -1: it could not be asked (a broken link)


@dataclass
class Passed:
    """What a walk passed by: how many files of each ending were not wanted, and which directories there are."""

    endings: Counter[str] = field(default_factory=Counter)
    directories: list[str] = field(default_factory=list)


def walk_files(root: Path, extensions: Collection[str], passed: Passed | None = None) -> Iterator[FoundFile]:
    """Yield all regular files below `root` that end in one of `extensions` (".jpg", lower case), in no particular
    order.

    Hidden files and directories are left out. Links to directories are followed, but not back into a directory that
    is being visited. A broken link is listed: the image is missing, which must be seen.

    Raises:
        PipelineError: a directory cannot be listed, or a file's name is not UTF-8.
    """
    endings, passed = tuple(extensions), passed or Passed()
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while pending:
        directory, ancestors = pending.pop()
        identity = _identity(root, directory)
        if identity in ancestors:
            continue
        for entry in _entries(root, directory):
            path = f"{directory}/{entry.name}" if directory else entry.name
            if is_hidden(entry.name):
                continue
            if _is_directory(entry):
                passed.directories.append(path)
                pending.append((path, (*ancestors, identity)))
            elif not entry.name.lower().endswith(endings):
                passed.endings[ending_of(entry.name)] += 1
            elif (size := _size(entry)) is not None:
                require_utf8(path, root)
                yield FoundFile(path, size)


def require_utf8(path: str, where: Path) -> None:
    """Raises PipelineError when the name `path` found in `where` has bytes that are not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise PipelineError(
            f"{printable(where)}: the file name {path.encode(errors='surrogateescape')!r} is not UTF-8, "
            "which the image index needs; rename the file"
        ) from None


def printable(path: Path | str) -> str:
    """Return `path` for a message, whatever bytes it has."""
    return str(path).encode(errors="surrogateescape").decode(errors="backslashreplace")


def _identity(root: Path, directory: str) -> tuple[int, int]:
    where = os.path.join(root, directory)
    try:
        status = os.stat(where)
    except OSError as error:
        raise _unlisted(where, error) from error
    return status.st_dev, status.st_ino


def _entries(root: Path, directory: str) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a directory, as the system lists it: all of them at once may be a million."""
    where = os.path.join(root, directory)
    try:
        with os.scandir(where) as entries:
            yield from entries
    except OSError as error:
        raise _unlisted(where, error) from error


def _unlisted(where: str, error: OSError) -> PipelineError:
    return PipelineError(
        f"{printable(where)}: the directory cannot be listed ({error.strerror}); its images would be missing "
        "without a trace: give read permission, or move it out of the data set"
    )


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _size(entry: os.DirEntry[str]) -> int | None:
    """Return the bytes of a file; -1 for a broken link; None for a socket or pipe, whose reader would wait for ever."""
    try:
        status = entry.stat()
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else None
