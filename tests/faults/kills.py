"""Runs of the chain in processes of their own, stopped again and again until one comes to its end by itself.

Moments are drawn from a seed; where they fall in the run is up to the machine, so a seed repeats the kind of an ordeal
and not the very instants. What must hold, holds for every instant. However fast the machine, every blow falls: when a
run comes to its end before it, the run is compared, and the blow falls on a new one, sooner.
"""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil

from tests.faults.chain import STAGES, Expected, being_built, run_chain, wrong_results
from tests.forked import server

_FIRST_LIMIT, _GROWTH = 2.5, 1.1  # seconds; each kill leaves the next attempt a little longer, so the end is reached
_LONGEST = 300.0
_LOOK = 0.001


@dataclass(frozen=True)
class Blow:
    """One kill: when the chain works on `stage` ("": at once) and `seconds` have passed, the signal."""

    seconds: float
    number: signal.Signals = signal.SIGKILL
    stage: str = ""


@dataclass
class Ordeal:
    """What was done to a run and what came of it: kills by stage and by signal, and a sentence per wrong result."""

    hit: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    wrong: list[str] = field(default_factory=list)


def at_random_moments(drawn: random.Random, kills: int, signals: Sequence[signal.Signals]) -> Iterator[Blow]:
    """Yield moments anywhere between the start of an attempt and a limit that grows."""
    for number in range(kills):
        yield Blow(drawn.uniform(0, _FIRST_LIMIT * _GROWTH**number), drawn.choice(signals))


def in_every_stage(drawn: random.Random, *, longest: float = 0.15) -> Iterator[Blow]:
    """Yield one in each stage, as far as it takes long enough to be met."""
    for stage in STAGES:
        yield Blow(drawn.uniform(0, longest), stage=stage)


def survive(root: Path, expected: Expected, blows: Iterable[Blow], *, tracked: bool = False) -> Ordeal:
    """Run the chain in `root` to its end through the blows, and compare what is published after each.

    Raises:
        AssertionError: an attempt that nobody stopped did not come to its end.
    """
    ordeal = Ordeal()
    workers: list[psutil.Process] = []
    for blow in blows:
        while not _strike(root, blow, ordeal, workers, tracked=tracked):
            ordeal.wrong += _wrong_at_the_end(root, expected)
            shutil.rmtree(root)
            blow = replace(blow, seconds=blow.seconds / 2)
        ordeal.wrong += wrong_results(root, expected)
    process = start_chain(root, tracked=tracked)
    ordeal.attempts += 1
    process.join(_LONGEST)
    require_end(process, root, stopped=False)
    alive = psutil.wait_procs(workers, timeout=30)[1]
    ordeal.wrong += [f"{worker}: outlived the run that was killed" for worker in alive]
    ordeal.wrong += _wrong_at_the_end(root, expected)
    return ordeal


def _strike(root: Path, blow: Blow, ordeal: Ordeal, workers: list[psutil.Process], *, tracked: bool) -> bool:
    """Return one attempt under one blow: whether it fell before the end. `workers` gains those that decoded images
    then."""
    process = start_chain(root, tracked=tracked)
    ordeal.attempts += 1
    wait_until_built(root, blow.stage, process)
    process.join(blow.seconds)
    workers += _family(process)
    where, fell = being_built(root), process.is_alive()
    if fell:
        ordeal.hit[where] += 1
        ordeal.sent[blow.number.name] += 1
        os.kill(process.pid or 0, blow.number)
    process.join()
    require_end(process, root, stopped=fell)
    return fell


def _wrong_at_the_end(root: Path, expected: Expected) -> list[str]:
    """Return a sentence for all that a run which came to its end should not have left, or should have."""
    left = [f"{path}: left behind" for path in root.glob("*/*.partial")]
    return left + wrong_results(root, expected, whole=True)


def start_chain(root: Path, *, tracked: bool = False) -> ForkServerProcess:
    """Return the chain in a new process, forked from a server that has imported everything: it begins within
    milliseconds."""
    _log_of(root).unlink(missing_ok=True)
    process = server().Process(target=_run_alone, args=(root, tracked))
    process.start()
    return process


def _log_of(root: Path) -> Path:
    return root.with_name(f"{root.name}.log")


def _family(process: ForkServerProcess) -> list[psutil.Process]:
    """Return those that decode images for it."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_until_built(root: Path, stage: str, process: ForkServerProcess) -> bool:
    """Wait until the process works on a stage ("": at once); False when it has ended before."""
    deadline = time.monotonic() + _LONGEST
    while stage and process.is_alive() and not any(root.glob(f"{stage}/*.partial")):
        assert time.monotonic() < deadline, f"{stage}: not begun within {_LONGEST:.0f} s"
        time.sleep(_LOOK)
    return process.is_alive()


def require_end(process: ForkServerProcess, root: Path, *, stopped: bool) -> None:
    """Require that it was killed by the signal, ended by itself, or by KeyboardInterrupt (1); nothing else, and not
    without being asked.

    A process that has made no log yet had not begun: the fork server's child, interrupted, ends with 1 and no word.
    """
    allowed = {0, 1, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT} if stopped else {0}
    said = _log_of(root)
    log = said.read_text() if said.exists() else ""
    errors = [line for line in log.splitlines() if "Error" in line and "KeyboardInterrupt" not in line]
    assert process.exitcode in allowed, f"{root}: ended with exit code {process.exitcode}:\n{log[-3000:]}"
    interrupted = "KeyboardInterrupt" in log or not said.exists()
    assert process.exitcode != 1 or interrupted, f"{root}: {errors}\n{log[-3000:]}"


def _run_alone(root: Path, tracked: bool) -> None:
    with _log_of(root).open("w") as log:  # tracebacks of what is interrupted are no test's output
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    run_chain(root, tracked=tracked)
