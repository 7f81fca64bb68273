"""Progress of long work: a bar in a terminal, a log line now and then elsewhere (Prefect's UI shows those)."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

logger = logging.getLogger("mapet.progress")
_SECONDS_BETWEEN_LINES = 30.0


class Advance(Protocol):
    """Tells that `count` more are done; `note` is shown beside the bar until the next one."""

    def __call__(self, count: int, note: str = "") -> None: ...


@contextmanager
def progress(what: str, total: int, *, done: int = 0, unit: str = "images") -> Iterator[Advance]:
    """Yield `advance(n)`; `done` of `total` were finished by an earlier run."""
    context = _bar if sys.stderr.isatty() else _log_lines
    with context(what, total, done, unit) as advance:
        yield advance


@contextmanager
def _bar(what: str, total: int, done: int, unit: str) -> Iterator[Advance]:
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
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, *times, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done, note="")

        def advance(count: int, note: str = "") -> None:
            bar.update(task, advance=count, note=note)

        yield advance


@contextmanager
def _log_lines(what: str, total: int, done: int, unit: str) -> Iterator[Advance]:
    started = said = time.monotonic()
    new = 0

    def advance(count: int, note: str = "") -> None:
        nonlocal new, said
        new += count
        now = time.monotonic()
        if now - said >= _SECONDS_BETWEEN_LINES:
            said = now
            rate = new / (now - started)
            speed = note or f"{rate:.1f} {unit}/s"
            left = f", about {(total - done - new) / rate:.0f} s left" if new else ""
            logger.info("%s: %d of %d %s, %s%s", what, done + new, total, unit, speed, left)

    yield advance
