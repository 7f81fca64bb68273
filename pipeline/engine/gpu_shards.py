"""Shards of a stage on all GPUs of this machine, a process for each.

A process sees its own GPU alone and has its share of the cores. It is given a group of shards, and when these are done
the next ones, through a socket that is its standard input (`pipeline.engine.gpu_worker`). Whatever happens to the
process that runs the stage, none of them outlives it.
"""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from pipeline.engine.devices import say_gpus
from pipeline.engine.errors import PipelineError
from pipeline.engine.map_shards import Done, Shard, in_groups
from pipeline.engine.stops import raise_if_stopped
from pipeline.engine.threads import threads_of_each

_SECONDS_BETWEEN_LOOKS = 0.3
_KEPT = "what is done is kept: run the same command again to go on"


class Line(NamedTuple):
    """A line for the logs."""

    logger: str
    level: int
    text: str


class Answer(NamedTuple):
    """What became of a group of shards.

    Attributes:
        done: what the work returned.
        error: what it raised instead.
        lines: what was said meanwhile.
    """

    done: Any
    error: Exception | None
    lines: Sequence[Line]


@dataclass(frozen=True)
class GpuShards:
    """A `MapShards` on processes of this machine.

    Attributes:
        gpus: one for each process, as `CUDA_VISIBLE_DEVICES` names them.
    """

    gpus: tuple[str, ...]

    def __call__(self, work: Callable[[Sequence[Shard]], Done], shards: Sequence[Shard]) -> Iterator[Done]:
        """Raises PipelineError when one of the processes dies, and what `work` raises there."""
        groups, said = deque(in_groups(shards, workers=len(self.gpus))), _SaidOnce()
        gpus = self.gpus[: len(groups)]
        say_gpus(len(gpus), wanted=len(self.gpus))
        with ExitStack() as waited_for, ExitStack() as ended:  # all have been ended before the first is waited for
            at_work = {}
            for gpu in gpus:
                worker = _started(gpu, together=len(gpus))
                waited_for.callback(worker.process.wait)
                ended.callback(worker.end)
                at_work[worker.socket] = worker
            for worker in at_work.values():
                worker.begin(work, groups.popleft())
            while at_work:
                for socket in wait(list(at_work), timeout=_SECONDS_BETWEEN_LOOKS):
                    worker = at_work[socket]  # type: ignore[index]
                    answer = worker.answer()
                    said.say(answer.lines)
                    if answer.error is not None:
                        raise answer.error
                    if groups:
                        worker.begin(work, groups.popleft())
                    else:
                        del at_work[worker.socket]
                    yield answer.done
                raise_if_stopped()


@dataclass(frozen=True)
class _Worker:
    """A process with a GPU of its own, and the socket between it and this one."""

    process: subprocess.Popen[bytes]
    socket: "Connection[Any, Answer]"

    def begin(self, work: Callable[[Any], Any], shards: Sequence[Any]) -> None:
        try:
            self.socket.send((work, shards))
        except ConnectionError as error:
            raise PipelineError(self._why_it_died()) from error

    def answer(self) -> Answer:
        try:
            return self.socket.recv()
        except (EOFError, OSError) as error:
            raise PipelineError(self._why_it_died()) from error

    def end(self) -> None:
        """End it, and what it has started. What it was writing has a temporary name: nothing is lost."""
        self.socket.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _why_it_died(self) -> str:
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return (
                "a process that encodes images was killed by SIGKILL, as Linux does when memory is short; set "
                f"settings.workers or settings.batch_size to less; {_KEPT}"
            )
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"died (exit code {code})"
        return f"a process that encodes images {how}; what it said is above; {_KEPT}"


def _started(gpu: str, *, together: int) -> _Worker:
    """Start a process of so many."""
    threads = {"OMP_NUM_THREADS": str(threads_of_each(together))}
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.engine.gpu_worker", str(os.getpid())],
            stdin=theirs.fileno(),
            start_new_session=True,  # Ctrl-C in a terminal reaches this process alone, which ends them at once
            env={**threads, **os.environ, "CUDA_VISIBLE_DEVICES": gpu},
        )
    return _Worker(process, ours)


@dataclass
class _SaidOnce:
    """Says what the processes say, and only once what all of them do."""

    _before: set[Line] = field(default_factory=set)

    def say(self, lines: Sequence[Line]) -> None:
        for line in lines:
            if line not in self._before:
                self._before.add(line)
                logging.getLogger(line.logger).log(line.level, "%s", line.text)
