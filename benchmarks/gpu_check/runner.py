"""Runs steps, each in a process of its own, and writes down what becomes of them."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.checks import Check, Setup
from benchmarks.gpu_check.step import BEGINS, UNUSABLE

_SECONDS_TO_NAME_A_CARD = 120


@dataclass(frozen=True)
class Step:
    """`module` has `attempts(setup)`; it is killed after `seconds`."""

    name: str
    module: str
    seconds: float


@dataclass(frozen=True)
class Card:
    """What the results are of; a field is empty where nothing tells it."""

    card: str
    driver: str = ""
    torch: str = ""
    cuda: str = ""
    commit: str = ""

    @property
    def file_name(self) -> str:
        return re.sub("[^a-z0-9]+", "-", self.card.lower()).strip("-") or "unknown"


def card_of(device: str) -> Card:
    """Ask which card it is in a process of its own: like that of a step, it may die or hang."""
    command = [sys.executable, "-m", "benchmarks.gpu_check.card", device]
    try:
        said = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=_SECONDS_TO_NAME_A_CARD, check=True
        ).stdout
        return Card(**json.loads(said.splitlines()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError) as error:
        print(f"the card cannot be named: {error}", file=sys.stderr)
        return Card("unknown")


def run_step(step: Step, setup: Setup, *, seconds: float, log: Path) -> list[Check]:
    """Run a step and return its checks.

    A process that dies is one more check, and another process goes on with the next attempt.
    """
    deadline, found, begun = time.monotonic() + seconds, list[Check](), 0
    while (left := deadline - time.monotonic()) > 0:
        ended = _run_process(step, setup, first=begun, seconds=left, log=log)
        found += ended.checks
        if ended.code is None:
            return [*found, Check(ended.last, "timed out", note=f"killed, the step had {seconds:.0f} s")]
        if ended.code == 0:
            return found
        if ended.code != UNUSABLE:
            found.append(Check(ended.last, "failed", note=f"its process ended with {_in_words(ended.code)}"))
        if not ended.begun:  # it would die again before its first attempt
            return found
        begun += ended.begun
    return [*found, Check("", "left out", note="no time was left" if not begun else "no time was left for the rest")]


@dataclass(frozen=True)
class _Ended:
    """`code`: None where it was killed for taking too long; `begun` attempts, of which `last` was the last."""

    code: int | None
    checks: list[Check]
    begun: int
    last: str


def _run_process(step: Step, setup: Setup, *, first: int, seconds: float, log: Path) -> _Ended:
    """Run a step from attempt number `first` on; what it prints is appended to `log`."""
    with tempfile.TemporaryDirectory(prefix="mapet-gpu-check-") as folder, log.open("ab") as output:
        results = Path(folder, "checks.jsonl")
        command = [sys.executable, "-m", "benchmarks.gpu_check.step", step.module, setup.device, str(results)]
        output.write(f"\n=== {step.name}\n".encode())
        output.flush()
        # In a session of its own, so that whatever it started can be ended with it.
        process = subprocess.Popen(
            [*command, str(first), *(["quick"] if setup.quick else [])],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code: int | None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill(process)
        return _ended(code, results)


def _in_words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a step's process with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:  # in the driver, where no signal reaches it: it is left behind
        print(f"process {process.pid} cannot be killed", file=sys.stderr)


def _ended(code: int | None, results: Path) -> _Ended:
    """Read how far a process came from what it wrote; a line cut short does not count."""
    text = results.read_text() if results.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    begun = [line[BEGINS] for line in lines if BEGINS in line]
    checks = [Check(**line) for line in lines if BEGINS not in line]
    return _Ended(code, checks, len(begun), begun[-1] if begun else "")


@dataclass(frozen=True)
class Record:
    """A file of results: one line a check; a step that runs again replaces its own lines."""

    path: Path
    of: dict[str, str]

    def replace(self, step: str, checks: Iterable[Check], seconds: float) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in kept if json.loads(line)["step"] != step]
        for check in checks:
            kept.append(json.dumps(self._line(step, check, seconds)))
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text("".join(f"{line}\n" for line in kept))
        unfinished.replace(self.path)

    def _line(self, step: str, check: Check, seconds: float) -> dict[str, Any]:
        value = check.value if check.value is None else float(f"{check.value:.4g}")
        return {"step": step, **asdict(check), "value": value, "step_seconds": round(seconds, 1), **self.of}


def run_all(steps: Sequence[Step], setup: Setup, record: Record, *, minutes: float) -> list[Check]:
    """Run every step in turn while there is time; print each one's part of the table when it is done."""
    deadline = time.monotonic() + 60 * minutes
    found: list[Check] = []
    record.path.parent.mkdir(parents=True, exist_ok=True)
    for step in steps:
        started = time.monotonic()
        left = deadline - started
        checks = run_step(step, setup, seconds=min(step.seconds, left), log=record.path.with_suffix(".log"))
        seconds = time.monotonic() - started
        record.replace(step.name, checks, seconds)
        print(f"\n{step.name}, {seconds:.0f} s", flush=True)
        for check in checks:
            print(row(check), flush=True)
        found += checks
    return found


def row(check: Check) -> str:
    """Format a check as a line of the table."""
    number = "" if check.value is None else f"{check.value:.4g} {check.unit}"
    return f"  {check.status:<9} {check.name:<44} {number:<24} {check.note}".rstrip()
