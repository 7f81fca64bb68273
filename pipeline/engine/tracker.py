"""What stages may ask of an experiment tracker. They know this protocol; only `mlflow_tracker.py` knows MLflow."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from pipeline.engine.kept_run import KeptRun

JoinRun = Callable[[], AbstractContextManager["TrackedRun"]]
"""Opens, in another process, a run that this process has begun and will end. Can be pickled."""


class TrackedRun(Protocol):
    """One run: the whole build, or one stage of it."""

    @property
    def id(self) -> str:
        """The tracker's name of the run, "" when nothing is tracked."""

    @property
    def link(self) -> str:
        """Where a browser shows the run, "" when it cannot."""

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record points of curves, or single numbers; of a point that is told twice the first stays."""

    def tags(self, values: Mapping[str, str]) -> None: ...

    def dataset(self, name: str, digest: str, path: Path) -> None:
        """Record an input: name and digest; nothing is read."""

    def annotate(self, run_id: str, values: Mapping[str, float]) -> None:
        """Write numbers onto another run, which has ended; nothing happens when the tracker does not know it."""

    def file(self, path: Path) -> None:
        """Keep a copy of a small file (figure, report) with the run."""

    def child(self, name: str) -> AbstractContextManager["TrackedRun"]:
        """Begin a run below this one; leaving the context ends it: finished, failed (an exception) or killed
        (Ctrl-C)."""

    def comparable(self, name: str, group: str, kept: KeptRun) -> AbstractContextManager["TrackedRun"]:
        """Begin a run among others of its kind, to be compared with them, and below none; it ends as a child does.

        It is the one that is `kept` if the tracker has it: a building that was stopped goes on in the run that it was
        begun in.
        """

    def elsewhere(self) -> JoinRun:
        """Return what another process enters to go on in this run."""


class NoTracking:
    """Tracks nothing: for tests, benchmarks and worker processes."""

    id = link = ""

    def params(self, values: Mapping[str, Any]) -> None:
        pass

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        pass

    def tags(self, values: Mapping[str, str]) -> None:
        pass

    def dataset(self, name: str, digest: str, path: Path) -> None:
        pass

    def annotate(self, run_id: str, values: Mapping[str, float]) -> None:
        pass

    def file(self, path: Path) -> None:
        pass

    @contextmanager
    def child(self, name: str) -> Iterator[TrackedRun]:
        yield self

    @contextmanager
    def comparable(self, name: str, group: str, kept: KeptRun) -> Iterator[TrackedRun]:
        yield self

    def elsewhere(self) -> JoinRun:
        return NoTracking.joined

    @staticmethod
    @contextmanager
    def joined() -> Iterator[TrackedRun]:
        yield NoTracking()
