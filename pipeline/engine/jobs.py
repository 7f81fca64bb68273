"""Jobs: stages that are made in processes of their own on this machine, several at once.

    main process  --  Setup, then an Order for each stage  -->  `pipeline.engine.job`
    main process  <--  of each stage Lines and Bars, then Done  --

A process makes one stage after the other, as the imports of a stage take seconds. It ends when nobody has orders for it
any more, and with the main process, whatever happens to that. Bits do not depend on it: a job has a share of the
processes that decode images, but computes with as many threads as a run without jobs (sums of a large network round by
them; a small one has one thread anyway, `pipeline/engine/threads.py`).
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from pipeline.engine.errors import PipelineError
from pipeline.engine.progress import Bar
from pipeline.engine.settings import Settings
from pipeline.engine.stage import Made, Stage
from pipeline.engine.tracker import JoinRun
from pipeline.engine.workspace import AtWork, StageResult
from storage.remote_answers import RemoteAnswers

STOPPED = 130  # exit code of a job that was told to stop
_SECONDS_TO_END = 60  # of a job that writes a last checkpoint
_KEPT = "what is done is kept: run the same command again to go on"


@dataclass(frozen=True)
class Setup:
    """What a job's process is told first. `bars`: whether somebody looks at its progress."""

    settings: Settings
    join: JoinRun
    bars: bool


@dataclass(frozen=True)
class Order:
    """A stage to make, from what `made` has; what is known of the object store, and what it holds while it is built."""

    stage: Stage
    made: Made
    answers: RemoteAnswers
    at_work: AtWork


@dataclass(frozen=True)
class Line:
    """What a job says."""

    logger: str
    level: int
    text: str


@dataclass(frozen=True)
class Done:
    """What came of an order: the result, or the error in its place."""

    result: StageResult | None = None
    error: Exception | None = None


Message = Line | Bar | Done


class JobProcess:
    """The main process's end of a job. To be closed."""

    def __init__(self, setup: Setup, environment: Mapping[str, str]) -> None:
        # In a session of its own: Ctrl-C in a terminal reaches the main process alone, which passes it on, once.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.engine.job", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **environment},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._process.stdin as orders, self._process.stdout as messages:
            self._orders = Connection(os.dup(orders.fileno()), readable=False)
            self.messages = Connection(os.dup(messages.fileno()), writable=False)
        self._send(setup)

    def make(self, order: Order) -> None:
        """Hand over an order; what comes of it is among the messages."""
        self._send(order)

    def received(self) -> Iterator[Message]:
        """Yield the messages that are there. Raises PipelineError, one sentence, if the process died."""
        try:
            while self.messages.poll():
                yield self.messages.recv()
        except (EOFError, OSError):
            self._process.wait()
        # Asked for as well: the processes that decode images for a job hold its end open for a moment longer.
        if self._process.poll() is not None:
            raise PipelineError(self._how_it_died())

    def stop(self) -> None:
        """Ask it to end now, which takes a training as long as a checkpoint."""
        if self._process.poll() is None:
            self._process.terminate()

    def close(self) -> None:
        """Let it end, as it has no more orders or was stopped; what takes too long is killed."""
        self._orders.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.kill()
        self.messages.close()

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        self._process.kill()
        self._process.wait()

    def _send(self, told: Setup | Order) -> None:
        with suppress(OSError):  # it died; `received` says so
            self._orders.send(told)

    def _how_it_died(self) -> str:
        code = self._process.wait()
        if code == STOPPED:
            return f"its process was told to stop; {_KEPT}"
        if code < 0:
            name = signal.Signals(-code).name
            why = ", as Linux does when memory is short" if name == "SIGKILL" else ""
            return f"its process was killed by {name}{why}; {_KEPT}"
        return f"its process ended with exit code {code}; {_KEPT}"
