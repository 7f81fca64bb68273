"""Processes of tests, forked from a server that has imported everything: they begin within milliseconds.

There is one such server for all tests of a process, whoever asks first, so all must want the same of it. As a program
that is started, a process here has its caller's environment and folder; its output goes to files.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any


def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.preload"])
    return context


@dataclass(frozen=True)
class Forked:
    """A process that calls a function, and may be sent signals."""

    process: ForkServerProcess
    folder: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """As a power cut."""
        self.process.kill()
        self.process.join()

    def wait_until(self, probe: Callable[[], object], seconds: float = 120) -> None:
        """Until `probe` finds something.

        Raises:
            AssertionError: it has ended before, or nothing was found for so many seconds.
        """
        deadline = time.monotonic() + seconds
        while not probe():
            assert self.alive, f"ended with {self.process.exitcode}: {self.err[-3000:]}"
            assert time.monotonic() < deadline, f"nothing happened for {seconds:.0f} s: {self.err[-3000:]}"
            time.sleep(0.005)

    def wait(self, seconds: float) -> int:
        """Its exit code, minus a signal's number if that ended it.

        Raises:
            AssertionError: it still runs after so many seconds.
        """
        self.process.join(seconds)
        if self.alive:
            self.kill()
            raise AssertionError(f"still running after {seconds:.0f} s: {self.err[-3000:]}")
        return self.process.exitcode or 0


def start(
    folder: Path, function: Callable[..., object], *arguments: Any, environment: Mapping[str, str] | None = None
) -> Forked:
    """Call a function of a module in a process of its own; `folder` takes what it prints.

    Args:
        environment: what it has beside the caller's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("out", "err"):
        (folder / name).write_bytes(b"")
    surroundings = {**os.environ, **(environment or {})}
    process = server().Process(target=_call, args=(folder, Path.cwd(), surroundings, function, arguments))
    process.start()
    return Forked(process, folder)


def _call(
    folder: Path,
    working: Path,
    environment: dict[str, str],
    function: Callable[..., object],
    arguments: tuple[Any, ...],
) -> None:
    for number, name in ((1, "out"), (2, "err")):
        with (folder / name).open("wb") as file:
            os.dup2(file.fileno(), number)
    # A background job of a shell ignores Ctrl-C, and that is inherited: here it is a terminal's.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(working)
    function(*arguments)
