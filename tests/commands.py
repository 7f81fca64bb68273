"""The command `mapet` in a process of its own, which may be short of something: room, permission, memory."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.commands.main import main
from tests.forked import Forked, start


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on stderr: where an error stands."""
        return self.err.strip().rpartition("\n")[2]


def mapet(
    folder: Path,
    *words: str,
    shortage: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = 300,
) -> Said:
    """Run `mapet words...` with what `shortage()` does to its process; `folder` takes what it says."""
    return ended(begin(folder, *words, shortage=shortage, environment=environment), seconds)


def begin(
    folder: Path,
    *words: str,
    shortage: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Forked:
    """Begin `mapet`, which is not waited for."""
    return start(folder, _command, words, shortage, environment=environment)


def ended(process: Forked, seconds: float = 300) -> Said:
    code = process.wait(seconds)
    return Said(code, process.out, process.err)


def _command(words: Sequence[str], shortage: Callable[[], None] | None) -> None:
    if shortage is not None:
        shortage()
    main(words)


def without_privileges() -> None:
    """Root may write everywhere, and CI may be root: give all capabilities up."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # linux/capability.h, version 3
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")
