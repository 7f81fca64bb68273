"""Processes of tests, forked from a server that has imported everything: they begin within milliseconds.

There is one such server for all tests of a process, whoever asks first, so all must want the same of it. As a program
that is started, a process here has its caller's environment and folder; its output goes to files. Programs of Python
that it starts, and that these start, such as torchrun and its workers, are forked as well.
"""

import gc
import logging
import multiprocessing
import os
import pickle
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, NoReturn

import torch

from pipeline.engine.logs import LOGGERS

_LEFT: list[object] = []


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
        """Kill it as a power cut would."""
        self.process.kill()
        self.process.join()

    def wait_until(self, probe: Callable[[], object], seconds: float = 120) -> None:
        """Wait until `probe` finds something.

        Raises:
            AssertionError: it has ended before, or nothing was found for so many seconds.
        """
        deadline = time.monotonic() + seconds
        while not probe():
            assert self.alive, f"ended with {self.process.exitcode}: {self.err[-3000:]}"
            assert time.monotonic() < deadline, f"nothing happened for {seconds:.0f} s: {self.err[-3000:]}"
            time.sleep(0.005)

    def wait(self, seconds: float) -> int:
        """Return its exit code, minus a signal's number if that ended it.

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


def call(folder: Path, function: Callable[..., Any], *arguments: Any, seconds: float = 300, **named: Any) -> Any:
    """Call a function of a module in a process of its own; return what it returns, or raise what it raises.

    `folder` takes what it prints.
    """
    answer = folder / "answer.pickle"
    process = start(folder, _answer, answer, partial(function, *arguments, **named))
    assert process.wait(seconds) == 0, process.err
    value = pickle.loads(answer.read_bytes())
    if isinstance(value, BaseException):
        raise value
    return value


def _answer(path: Path, function: Callable[[], Any]) -> None:
    try:
        value = function()
    except Exception as error:
        value = error
    path.write_bytes(pickle.dumps(value))


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
    _fork_programs()
    function(*arguments)


def _fork_programs() -> None:
    """Have each `python -m MODULE ...` forked from who starts it, with nothing to import; else it is as if started: it
    has an environment, a session, files and a parent as it would have."""
    begin = subprocess.Popen.__init__

    def fork(self: Any, args: Any, *more: Any, **named: Any) -> None:
        if not isinstance(args, str | os.PathLike) and args[0] == sys.executable and "-m" in args[1:3]:
            named["preexec_fn"] = partial(_become, args[args.index("-m") + 1 :], named.get("env"))
        begin(self, args, *more, **named)

    subprocess.Popen.__init__ = fork  # type: ignore[method-assign]


def _become(program: Sequence[str], environment: Mapping[str, str] | None) -> NoReturn:
    """Run the program in this fork, instead of `exec`: a file that stays open would be waited for."""
    tracker = resource_tracker.getfd()
    os.closerange(3, tracker)
    os.closerange(tracker + 1, os.sysconf("SC_OPEN_MAX"))
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _forget_lines_and_databases()
    gc.enable()  # which was stopped for the fork
    torch.set_num_threads(1)  # there may have been more, which a fork does not take along
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    code: object = 1
    try:
        sys.argv = list(program)
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _forget_lines_and_databases() -> None:
    """Let go of what a program that was started would not have: where its starter says things, and open databases."""
    for name in LOGGERS:
        logging.getLogger(name).handlers.clear()
    store = sys.modules.get("mlflow.store.tracking.sqlalchemy_store")
    for engine in store.SqlAlchemyStore._engine_map.values() if store else ():
        _LEFT.append(engine.pool)  # whose end would close files of the same numbers, which are others' here
        engine.dispose(close=False)
