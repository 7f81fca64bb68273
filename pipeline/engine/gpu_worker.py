"""A process that works on shards for another one. Started by `pipeline.engine.gpu_shards`, not by hand.

python -m pipeline.engine.gpu_worker PARENT    PARENT is the process that starts this one, with which it ends

Standard input is a socket: what to do and for which shards comes from there, and what became of them goes back.
"""

import faulthandler
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from pipeline.engine.errors import USER_ERRORS
from pipeline.engine.gpu_shards import Answer, Line
from pipeline.engine.logs import LOGGERS
from pipeline.engine.stops import stop_when_parent_dies

_STDIN = 0


def main(arguments: Sequence[str]) -> None:
    faulthandler.enable()  # a crash of native code says where
    stop_when_parent_dies(int(arguments[0]))
    said = _Kept()
    with Connection(os.dup(_STDIN)) as caller:
        os.dup2(os.open(os.devnull, os.O_RDONLY), _STDIN)
        while True:
            try:
                work, shards = caller.recv()  # of the process that started this one, over their own socket
            except EOFError:
                return
            caller.send(_answer(work, shards, said))


def _answer(work: Callable[[Any], Any], shards: Any, said: "_Kept") -> Answer:
    try:
        return Answer(work(shards), None, said.taken())
    except Exception as error:
        if not isinstance(error, (*USER_ERRORS, OSError)):
            error.add_note(f"in a process that encodes images:\n{traceback.format_exc()}")
        return Answer(None, error, said.taken())


class _Kept(logging.Handler):
    """Keeps what this process says, for the one that it works for."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[Line] = []
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.handlers = [self]
            logger.setLevel(logging.INFO)
            logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(Line(record.name, record.levelno, record.getMessage()))

    def taken(self) -> list[Line]:
        """Return what was said since the last time."""
        lines, self._lines = self._lines, []
        return lines


if __name__ == "__main__":
    main(sys.argv[1:])
