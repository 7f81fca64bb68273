"""A job's process. Started by `pipeline.engine.jobs`, not by hand.

python -m pipeline.engine.job PARENT    orders come on stdin, messages go to stdout; what else is printed, to stderr
"""

import faulthandler
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import NoReturn

from pipeline.engine.errors import USER_ERRORS, PipelineError
from pipeline.engine.jobs import STOPPED, Done, Line, Message, Order, Setup
from pipeline.engine.logs import log_to
from pipeline.engine.progress import Advance, Bar, show_progress_with
from pipeline.engine.stops import remembered_stops, stop_when_parent_dies
from pipeline.engine.threads import share_cores
from pipeline.engine.tracker import TrackedRun
from pipeline.engine.workspace import Workspace

_SECONDS_BETWEEN_BARS = 0.5


def main(arguments: Sequence[str]) -> NoReturn:
    """Exits with STOPPED when it is told to stop."""
    faulthandler.enable()  # a crash of native code says where
    stop_when_parent_dies(int(arguments[0]))
    share_cores()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    orders, messages = _connections()
    try:
        with remembered_stops():
            _make_all(orders, _Sender(messages))
    except KeyboardInterrupt:
        sys.exit(STOPPED)
    sys.exit(0)


def _connections() -> tuple[Connection, Connection]:
    """Take stdin and stdout for the main process alone; whatever prints, prints to stderr."""
    taken = os.dup(0), os.dup(1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return Connection(taken[0], writable=False), Connection(taken[1], readable=False)


class _Sender:
    """Sends messages, whole, whichever thread has one; none once the main process is gone."""

    def __init__(self, messages: Connection) -> None:
        self._messages, self._lock = messages, threading.Lock()

    def __call__(self, message: Message) -> None:
        with self._lock, suppress(OSError):
            self._messages.send(message)

    def line(self, logger: str, level: int, text: str) -> None:
        self(Line(logger, level, text))

    @contextmanager
    def bar(self, what: str, total: int, done: int, unit: str) -> Iterator[Advance]:
        """Send how far the work is, now and then."""
        latest, said = Bar(what, total, done, unit), 0.0

        def advance(count: int, note: str = "") -> None:
            nonlocal latest, said
            latest = replace(latest, done=latest.done + count, note=note)
            if (now := time.monotonic()) - said >= _SECONDS_BETWEEN_BARS:
                said = now
                self(latest)

        advance(0)
        yield advance


@contextmanager
def _silence(*_: object) -> Iterator[Advance]:
    yield lambda count, note="": None


def _make_all(orders: Connection, send: _Sender) -> None:
    setup: Setup = orders.recv()
    log_to(send.line)
    show_progress_with(send.bar if setup.bars else _silence)
    with setup.join() as run, suppress(EOFError):  # the end of the orders
        while True:
            send(_made(orders.recv(), setup, run))


def _made(order: Order, setup: Setup, run: TrackedRun) -> Done:
    try:
        workspace = Workspace(setup.settings, run, answers=order.answers, at_work=order.at_work)
        return Done(workspace.make(order.stage, order.made))
    except Exception as error:
        return Done(error=_portable(error))


def _portable(error: Exception) -> Exception:
    """Return an error that can be sent, with the traceback of a bug as its note."""
    if not isinstance(error, (*USER_ERRORS, OSError)):
        error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))  # nosec B301 (our own bytes)
        return error
    except Exception:  # of a class whose arguments are not those it is made of
        if isinstance(error, USER_ERRORS):
            return PipelineError(str(error))
        plain = RuntimeError(traceback.format_exception_only(error)[0].strip())
        plain.add_note(traceback.format_exc())
        return plain


if __name__ == "__main__":
    main(sys.argv[1:])
