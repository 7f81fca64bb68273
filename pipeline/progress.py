"""Progress of long work: a bar in a terminal, a log line now and then elsewhere (Prefect's UI shows those)."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger("mapet.progress")
_SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress(what: str, total: int, *, done: int = 0, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)`; `done` of `total` were finished by an earlier run."""
    context = _bar if sys.stderr.isatty() else _log_lines
    with context(what, total, done, unit) as advance:
        yield advance


@contextmanager
def _bar(what: str, total: int, done: int, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _log_lines(what: str, total: int, done: int, unit: str) -> Iterator[Callable[[int], None]]:
    started = said = time.monotonic()
    new = 0

    def advance(count: int) -> None:
        nonlocal new, said
        new += count
        now = time.monotonic()
        if now - said >= _SECONDS_BETWEEN_LINES:
            said = now
            rate = new / (now - started)
            left = (total - done - new) / rate
            logger.info(
                "%s: %d of %d %s, %.1f %s/s, about %.0f s left", what, done + new, total, unit, rate, unit, left
            )

    yield advance
