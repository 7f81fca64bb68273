"""Progress of long work: a bar in a terminal, a log line now and then elsewhere (Prefect's UI shows those).

Of several jobs at once, the process that started them draws the bars, a row each.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from pipeline.engine.logs import lines_above_bars

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

logger = logging.getLogger("mapet.progress")
_SECONDS_BETWEEN_LINES = 30.0


class Advance(Protocol):
    """Tells that `count` more are done; `note` is shown beside the bar until the next one."""

    def __call__(self, count: int, note: str = "") -> None: ...


@contextmanager
def progress(what: str, total: int, *, done: int = 0, unit: str = "images") -> Iterator[Advance]:
    """Yield `advance(n)`; `done` of `total` were finished by an earlier run."""
    context = _elsewhere or (_bar if sys.stderr.isatty() else _log_lines)
    with context(what, total, done, unit) as advance:
        yield advance


Show = Callable[[str, int, int, str], AbstractContextManager[Advance]]
"""Called with what `progress` is called with."""

_elsewhere: Show | None = None  # of a job, whose bars another process draws


def show_progress_with(show: Show) -> None:
    """Hand the progress of this process to `show`, from now on."""
    global _elsewhere
    _elsewhere = show


@dataclass(frozen=True)
class Bar:
    """How far a job's work is: what is shown of it in a row."""

    what: str
    total: int
    done: int
    unit: str
    note: str = ""


class Rows:
    """A row for each job, in a terminal; elsewhere nothing is shown. To be entered."""

    def __init__(self) -> None:
        self._shown = ExitStack()
        self._bars: Progress | None = None
        self._rows: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bars = self._shown.enter_context(_progress())
            self._shown.enter_context(lines_above_bars())
        return self

    def __exit__(self, *error: Any) -> None:
        self._shown.__exit__(*error)

    @property
    def are_shown(self) -> bool:
        return self._bars is not None

    def add(self, name: str) -> None:
        if self._bars is not None:
            self._rows[name] = self._bars.add_task(name, total=None, unit="", note="")

    def show(self, name: str, bar: Bar) -> None:
        """Show where a job is; what it said before is gone."""
        if self._bars is not None:
            words = f"{name}: {bar.what}"
            row = self._rows[name]
            self._bars.update(row, description=words, total=bar.total, completed=bar.done, unit=bar.unit, note=bar.note)

    def remove(self, name: str) -> None:
        if self._bars is not None:
            self._bars.remove_task(self._rows.pop(name))


def _progress() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
    )
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    return Progress(*columns, *times, console=Console(stderr=True), transient=True)


@contextmanager
def _bar(what: str, total: int, done: int, unit: str) -> Iterator[Advance]:
    with _progress() as bar:
        task = bar.add_task(what, total=total, completed=done, unit=unit, note="")

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
