"""The command `mapet` in a process of its own, which may be short of something: room, permission, memory."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.commands.main import main


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


def mapet(folder: Path, *words: str, shortage: Callable[[], None] | None = None, seconds: float = 300) -> Said:
    """Run `mapet words...` with what `shortage()` does to its process; `folder` takes what it says.

    It is forked from a server that has imported everything, which is why this takes no ten seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.preload"])
    folder.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_command, args=(words, folder, shortage))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"mapet {' '.join(words)}: still running after {seconds:.0f} s")
    return Said(process.exitcode or 0, (folder / "out").read_text(), (folder / "err").read_text())


def _command(words: Sequence[str], folder: Path, shortage: Callable[[], None] | None) -> None:
    for number, name in ((1, "out"), (2, "err")):
        with (folder / name).open("wb") as file:
            os.dup2(file.fileno(), number)
    if shortage is not None:
        shortage()
    main(words)
