"""Batches on their way to the device: loaded by workers, copied while the one before is computed on.

A large batch is loaded in pieces, by several workers, and put together on the device: what waits in between is bounded
in bytes (`shared_memory.py`). Workers are processes, as decoding holds the interpreter; what only copies from a memory
map releases it, so there threads of this process do, and hand nothing over.
"""

import errno
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.queues import Queue
from types import TracebackType
from typing import Any, Generic, NoReturn, Protocol, Self, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.shared_memory import Ahead, too_little_room
from pipeline.engine.stops import raise_if_stopped

_KEPT = "what is done is kept: run the same command again"
_END: Any = object()  # of what is loaded
_NO_ROOM = 71  # exit code of a worker that could not put a batch there
_STARTED: "WeakSet[_Worker]" = WeakSet()

Key = TypeVar("Key")
Loaded = TypeVar("Loaded")


class Movable(Protocol):
    """A batch, or a piece of one."""

    @property
    def is_last(self) -> bool:
        """False while other pieces of the same batch follow."""

    @classmethod
    def joined(cls, pieces: Sequence[Self]) -> Self:
        """Return the batch that these pieces make up, in their order."""

    def tensors(self) -> tuple[Tensor, ...]: ...

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> Self: ...


Moved = TypeVar("Moved", bound=Movable)


@dataclass(frozen=True)
class Batch:
    """Images for a learner, or a piece of a batch of them.

    Attributes:
        rows: in the image index.
        inputs: what the learner's `forward` takes, images first.
        lengths: how many values of the last input belong to each image; None: one row each, as of the other inputs.
        is_last: False while other pieces of the same batch follow.
    """

    rows: np.ndarray
    inputs: tuple[Tensor, ...]
    lengths: np.ndarray | None = None
    is_last: bool = True

    @classmethod
    def joined(cls, pieces: Sequence["Batch"]) -> "Batch":
        inputs = zip(*(piece.inputs for piece in pieces), strict=True)
        lengths = [piece.lengths for piece in pieces if piece.lengths is not None]
        return cls(
            np.concatenate([piece.rows for piece in pieces]),
            tuple(torch.cat(parts) for parts in inputs),
            np.concatenate(lengths) if lengths else None,
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def padded_size(self) -> int:
        return len(self)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.inputs

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> "Batch":
        return replace(self, inputs=tensors)

    def pin_memory(self) -> "Batch":
        return self.with_tensors(tuple(tensor.pin_memory() for tensor in self.inputs))

    def split(self, padded_size: int) -> Iterator["Batch"]:
        """Yield pieces of at most so many images, as even as possible: BatchNorm cannot normalise a single one left
        over."""
        for some in np.array_split(np.arange(len(self)), math.ceil(len(self) / padded_size)):
            yield self._cut(slice(some[0], some[-1] + 1))

    def _cut(self, piece: slice) -> "Batch":
        if self.lengths is None:
            return Batch(self.rows[piece], tuple(tensor[piece] for tensor in self.inputs))
        *others, last = self.inputs
        first, end = (int(self.lengths[:place].sum()) for place in (piece.start, piece.stop))
        return Batch(self.rows[piece], (*(tensor[piece] for tensor in others), last[first:end]), self.lengths[piece])


class _Loading(Dataset[Loaded | PipelineError | OSError], Generic[Key, Loaded]):
    """Loads in a worker, and hands an error for the user back as an item: of one that is raised there torch would bury
    the sentence in a traceback, and change the type, which tells whether trying again may help."""

    def __init__(self, load: Callable[[Key], Loaded]) -> None:
        self._load = load

    def __getitem__(self, key: Key) -> Loaded | PipelineError | OSError:
        try:
            return self._load(key)
        except (PipelineError, OSError) as error:
            return error


class _Worker(ForkProcess):
    """A forked process that loads, and ends without the interpreter's own ending.

    A fork inherits what the program around it wants done at its end: Prefect's log service, for one, joins threads
    that a fork does not have, and the worker dies of it. What was loaded is sent by then, or nobody wants it.
    """

    def run(self) -> NoReturn:
        code = 1
        try:
            super().run()
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)


class _Results(Queue):
    """Ends a worker that cannot send what it loaded, where its reader would wait for ever for what was dropped."""

    @staticmethod
    def _on_queue_feeder_error(error: Exception, _: object) -> None:
        no_room = getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)
        if not no_room:
            traceback.print_exception(error)
            sys.stderr.flush()
        if isinstance(multiprocessing.current_process(), _Worker):
            os._exit(_NO_ROOM if no_room else 1)


class _Workers(ForkContext):
    """Forked workers share what the loader holds, need no imports, and are children of this process, with which they
    end; those of a fork server are not."""

    def Process(self, *arguments: Any, **named: Any) -> _Worker:  # type: ignore[override]  # noqa: N802
        worker = _Worker(*arguments, **named)
        _STARTED.add(worker)
        return worker

    def Queue(self, maxsize: int = 0) -> _Results:  # noqa: N802
        return _Results(maxsize, ctx=self.get_context())


@contextmanager
def lost_workers_explained() -> Iterator[None]:
    """Turn torch's error about a worker that died, which it may raise at any moment, into a sentence.

    Raises:
        PipelineError: a worker died.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in ("DataLoader worker", "Pin memory thread")):
            raise
        raise PipelineError(f"{_why_it_died()}; {_KEPT}") from error


def _has_one_died(seconds: float = 5.0) -> bool:
    """Tell whether a worker has an exit code within so long: a connection may break an instant before."""
    deadline = time.monotonic() + seconds
    while not (died := any(worker.exitcode for worker in _STARTED)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return died


def _why_it_died() -> str:
    codes = {worker.exitcode for worker in _STARTED if worker.exitcode}
    if codes & {_NO_ROOM, -signal.SIGBUS}:
        return f"{too_little_room()}, or set settings.workers to less, 0 for none"
    if -signal.SIGKILL in codes:
        return (
            "a process that loads images was killed, as Linux does when memory is short; set settings.workers or the "
            "batch size to less"
        )
    return "a process that loads images died; what it said is above"


def _begin_work(parent: int, _: int) -> None:
    """Prepare a worker process before it loads anything."""
    silence_broken_pipes()
    threading.Thread(target=_exit_when_parent_dies, args=(parent,), daemon=True).start()


def _exit_when_parent_dies(parent: int) -> None:
    """End this process once `parent` is gone.

    torch's workers look whether their parent has changed since they began: if it was killed right after the fork, they
    would stay for ever, and with them the lock on the artifact, which is open in them too.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def silence_broken_pipes() -> None:
    """Keep a worker quiet about a reader that is gone while a batch is handed over, as after Ctrl-C: that is not worth
    a traceback."""
    say = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, EOFError | ConnectionError):
            say(kind, error, trace)

    sys.excepthook = hook


def load_in_workers(
    load: Callable[[Key], Loaded], keys: Iterable[Key], settings: Settings, ahead: Ahead, *, most: int | None = None
) -> Iterator[Loaded]:
    """Yield `load(key)` of every key, in order, ahead of time in workers (at most `most` of them).

    A key is a whole piece of a batch, of at most `ahead.images`: processes send whole tensors through shared memory,
    not single images. Where a GPU is the target, what arrives lies in pinned memory.
    """
    workers = ahead.workers if most is None else min(ahead.workers, most)
    pinned = settings.torch_device().startswith("cuda")
    if workers and ahead.in_threads:
        loading = _load_in_threads(_Loading(load), keys, ahead, threads=workers, pinned=pinned)
    else:
        loading = _load_in_processes(_Loading(load), keys, ahead, workers=workers, pinned=pinned)
    with closing(loading):  # at once when something is wrong, not when the error is forgotten
        for item in loading:
            raise_if_stopped()
            if isinstance(item, PipelineError | OSError):
                raise item
            yield item


def _load_in_threads(
    load: _Loading[Key, Loaded], keys: Iterable[Key], ahead: Ahead, *, threads: int, pinned: bool
) -> Generator[Loaded | PipelineError | OSError, None, None]:
    def loaded(key: Key) -> Loaded | PipelineError | OSError:
        item = load[key]
        return item.pin_memory() if pinned and hasattr(item, "pin_memory") else item

    under_way: deque[Future[Loaded | PipelineError | OSError]] = deque()
    pool = ThreadPoolExecutor(threads, "loader")
    try:
        for key in keys:
            under_way.append(pool.submit(loaded, key))
            if len(under_way) == threads * ahead.pieces:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:  # also when nobody wants more, or Ctrl-C was pressed
        pool.shutdown(cancel_futures=True)


def _load_in_processes(
    load: _Loading[Key, Loaded], keys: Iterable[Key], ahead: Ahead, *, workers: int, pinned: bool
) -> Generator[Loaded | PipelineError | OSError, None, None]:
    """Load in worker processes; without any, in this one when asked."""
    loader = DataLoader(
        load,
        sampler=keys,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=_Workers() if workers else None,
        prefetch_factor=ahead.pieces if workers else None,
        worker_init_fn=partial(_begin_work, os.getpid()),
        pin_memory=pinned,
    )
    loading = iter(loader)
    while True:
        with lost_workers_explained():
            try:
                item = next(loading, _END)
            except (ConnectionError, EOFError) as error:  # of a worker that died while it handed a tensor over
                if not _has_one_died():
                    raise
                raise PipelineError(f"{_why_it_died()}; {_KEPT}") from error
        if item is _END:
            return
        yield item


def in_groups(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Split rows into groups of at most `size`, in order."""
    return [rows[first : first + size] for first in range(0, len(rows), size)]


@dataclass
class WaitClock:
    """Counts the seconds in which somebody waits for the next item."""

    seconds: float = field(default=0.0, init=False)

    def timed(self, items: Iterator[Loaded]) -> Iterator[Loaded]:
        while True:
            asked = time.monotonic()
            item = next(items, None)
            self.seconds += time.monotonic() - asked
            if item is None:
                return
            yield item


def on_device(pieces: Iterator[Moved], device: torch.device) -> Iterator[Moved]:
    """Yield each batch whole, with its tensors on the device; on a GPU the next one is copied while this one is
    computed on."""
    batches = put_together(piece.with_tensors(tuple(_moved(t, device) for t in piece.tensors())) for piece in pieces)
    if device.type != "cuda":
        yield from batches
        return
    copies = torch.cuda.Stream(device)
    waiting: Moved | None = None
    while True:
        with torch.cuda.stream(copies):
            batch = next(batches, None)
        if waiting is not None:
            yield waiting
        if batch is None:
            return
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copies)
        for tensor in batch.tensors():
            tensor.record_stream(computing)  # its memory was taken on the other stream
        waiting = batch


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to the device; on a CPU, copy what a worker sent, which would take room in shared memory as long as
    the batch is needed."""
    return tensor.clone() if device.type == "cpu" and tensor.is_shared() else tensor.to(device, non_blocking=True)


def put_together(pieces: Iterable[Moved]) -> Iterator[Moved]:
    """Yield the batches that the pieces make up."""
    held: list[Moved] = []
    for piece in pieces:
        held.append(piece)
        if piece.is_last:
            yield held[0] if len(held) == 1 else piece.joined(held)
            held = []
