"""Ctrl-C and SIGTERM, not forgotten where Python swallows what their handlers raise.

A handler runs between any two instructions of the main thread: also inside a `__del__`, in a callback of the garbage
collector or of a weak reference, or in one that C code calls. What it raises there is printed ("Exception ignored in")
and dropped, and the work goes on. So handlers leave a note as well, and long work looks at it between its parts:
stages, batches of images, steps of a training, iterations of k-means.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1
Handler = Callable[[int, FrameType | None], Any]


@dataclass
class _Note:
    """What the handler of a signal that came has raised and is to raise again; None: none came."""

    raise_again: Callable[[], object] | None = None


_NOTE = _Note()  # one, as signals are sent to a process


@contextmanager
def remembered_stops() -> Iterator[None]:
    """Note SIGINT and SIGTERM, beside what their handlers do with them, for `raise_if_stopped`.

    Only of handlers in Python: what the system itself does with a signal, such as ending the process, nothing swallows.
    Nothing is noted when this is entered outside the main thread, to which alone Python hands signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
    _NOTE.raise_again = None
    try:
        for number, handler in before.items():
            signal.signal(number, _noting(handler))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _NOTE.raise_again = None


def is_stopped() -> bool:
    """Return whether a signal came whose exception may have been swallowed."""
    return _NOTE.raise_again is not None


def raise_if_stopped() -> None:
    """Raise in this thread what the handler of a signal has raised, such as KeyboardInterrupt."""
    if _NOTE.raise_again is not None:
        _NOTE.raise_again()


def _noting(handler: Handler) -> Handler:
    def note_and_handle(number: int, frame: FrameType | None) -> None:
        _NOTE.raise_again = partial(handler, number, None)
        handler(number, frame)
        _NOTE.raise_again = None  # it raised nothing: somebody else's, who deals with the signal in another way

    return note_and_handle


def stop_when_parent_dies(parent: int) -> None:
    """Have the kernel send this process SIGTERM when `parent`, which started it, is gone, even by SIGKILL: time for a
    last checkpoint, and no orphan on the GPU."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # gone before the kernel was asked
        sys.exit(1)
