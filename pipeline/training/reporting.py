"""Who hears how a training run goes: the tracker and a progress bar, or through a file the process that started it."""

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.engine.progress import Advance, progress
from pipeline.engine.tracker import TrackedRun


class TrackingReporter:
    """Curves to a tracked run, images to a progress bar. A context manager: leaving it takes the bar away."""

    def __init__(self, run: TrackedRun, what: str) -> None:
        self._run, self._what = run, what
        self._bar = ExitStack()
        self._advance: Advance | None = None

    def __enter__(self) -> "TrackingReporter":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, images: int, *, done: int) -> None:
        self._advance = self._bar.enter_context(progress(self._what, images, done=done))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._run.metrics({name: value for name, value in values.items() if math.isfinite(value)}, step)

    def advance(self, images: int, note: str) -> None:
        if self._advance is not None:
            self._advance(images, note)


class FileReporter:
    """Writes every call as a line of JSON, for a `Relay` to repeat in another process."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def begin(self, images: int, *, done: int) -> None:
        self._write(begin=[images, done])

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._write(metrics=[dict(values), step])

    def advance(self, images: int, note: str) -> None:
        self._write(advance=[images, note])

    def _write(self, **call: Any) -> None:
        self._file.write(json.dumps(call) + "\n")


class Relay:
    """Repeats what a `FileReporter` has written since the last time."""

    def __init__(self, path: Path, reporter: TrackingReporter) -> None:
        self._path, self._reporter, self._read = path, reporter, 0

    def repeat(self) -> None:
        if not self._path.exists():
            return
        with self._path.open() as file:
            file.seek(self._read)
            while (line := file.readline()).endswith("\n"):
                self._read = file.tell()
                self._call(json.loads(line))

    def _call(self, call: Mapping[str, Any]) -> None:
        match call:
            case {"begin": [images, done]}:
                self._reporter.begin(images, done=done)
            case {"metrics": [values, step]}:
                self._reporter.metrics(values, step)
            case {"advance": [images, note]}:
                self._reporter.advance(images, note)
