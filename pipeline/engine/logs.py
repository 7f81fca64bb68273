"""Log lines of a command or a worker process on stderr, and what must not be in them."""

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

LOGGERS = ("mapet", "models", "pipeline", "storage")


class _Lines(logging.StreamHandler[TextIO]):
    """Plain lines, the first of them below its heading."""

    heading = ""

    def emit(self, record: logging.LogRecord) -> None:
        if self.heading:
            self.stream.write(f"{self.heading}\n")
            self.heading = ""
        super().emit(record)


_HANDLER = _Lines()


def head_what_follows(heading: str) -> None:
    """Print a line before the next one, if there is a next one: an error that comes first stands alone."""
    _HANDLER.heading = heading


def log_to_stderr() -> None:
    """Print what the pipeline says, from INFO upwards; other libraries keep to themselves."""
    _log_to(_HANDLER)


def log_to(say: Callable[[str, int, str], None]) -> None:
    """Hand what the pipeline says, with the logger's name and the level, to `say`, which another process prints."""
    _log_to(_Handed(say))


@contextmanager
def lines_above_bars() -> Iterator[None]:
    """Print to what `sys.stderr` is now: whoever draws bars puts something there that prints above them."""
    before = _HANDLER.setStream(sys.stderr)
    try:
        yield
    finally:
        if before is not None:
            _HANDLER.setStream(before)


class _Handed(logging.Handler):
    def __init__(self, say: Callable[[str, int, str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.name, record.levelno, self.format(record))


def _log_to(handler: logging.Handler) -> None:
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    logging.getLogger("mapet.progress").setLevel(logging.WARNING)  # bars in a terminal, silence elsewhere


def without_passwords(text: str) -> str:
    """Hide the user and password of addresses, as in `http://***@host`: messages go to logs and to Prefect's UI."""
    return re.sub(r"://[^/\s]*@", "://***@", text)
