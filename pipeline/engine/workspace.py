"""What every stage is handed beside its options and inputs: this machine's settings, and the run that tracks it."""

import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models.options import Options
from pipeline.engine.kept_run import KeptRun
from pipeline.engine.map_shards import MapShards
from pipeline.engine.settings import Settings
from pipeline.engine.stage import Made, Source, Stage
from pipeline.engine.stage_record import BuildNotes
from pipeline.engine.tracker import NoTracking, TrackedRun
from storage.artifact import Artifact, Built, build_artifact
from storage.remote_answers import RemoteAnswers

logger = logging.getLogger("mapet.stages")
_RECORDED_VERSIONS = (
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "numpy",
    "pillow",
    "pyarrow",
    "zarr",
    "scikit-learn",
)


@dataclass(frozen=True)
class StageResult:
    """A stage's artifact, and whether it was already there. `label`: the stage, and what tells its runs apart."""

    artifact: Artifact
    cached: bool
    label: str

    @property
    def stage(self) -> str:
        return self.artifact.stage


AtWork = Callable[[Stage], AbstractContextManager[object]]
"""Holds what a stage needs beside this machine while it is built, or raises why it must not be built here. To be
pickled."""


def freely(stage: Stage) -> AbstractContextManager[object]:
    return nullcontext()


@dataclass(frozen=True)
class Workspace:
    """Where stages put their artifacts and what they tell the tracker.

    Attributes:
        map_shards: instead of what the settings ask for.
        at_work: is entered to build a stage, under the lock of its artifact; not for one that is found.
    """

    settings: Settings
    run: TrackedRun = field(default_factory=NoTracking)
    map_shards: MapShards | None = None
    answers: RemoteAnswers = field(default_factory=RemoteAnswers)
    at_work: AtWork = freely

    @contextmanager
    def tracked(self, name: str, config: Options) -> Iterator["Workspace"]:
        """Yield the same workspace inside a new MLflow run that records the whole configuration."""
        from pipeline.engine.mlflow_tracker import mlflow_run

        with mlflow_run(name, self.settings) as run:
            run.params(flatten(config.model_dump(mode="json")))
            yield replace(self, run=run)

    def of_job(self, jobs: int) -> "Workspace":
        """Return the workspace of one of so many jobs."""
        return replace(self, settings=self.settings.of_job(jobs))

    def made(self, artifacts: Mapping[Source, Artifact] | None = None) -> Made:
        """Return what stages look up, with these artifacts to begin with."""
        return Made(self.settings, dict(artifacts or {}), self.map_shards)

    def make(self, stage: Stage, made: Made) -> StageResult:
        """Find the artifact of a stage, or build it, and track what happened as a child run. Raises what the stage
        raises."""
        try:
            return self._make(stage, made)
        finally:
            made.forget(stage)

    def _make(self, stage: Stage, made: Made) -> StageResult:
        started = time.monotonic()
        if work := stage.preparation(made):
            logger.info("%s: %s", stage.NAME, work)
        recipe = made.recipe(stage)
        label, distinction = stage.label(made), stage.distinction(made)
        called = f"{label}, {distinction}" if distinction else label

        def build_here(folder: Path, run: TrackedRun) -> Built:
            from pipeline.engine.computing import computing  # torch, which a cached stage need not wait for

            with computing(label, self.settings.torch_device()):
                return _with_notes(stage.build(made, folder, run), run, started)

        def build_tracked(folder: Path) -> Built:
            if not stage.COMPARED:
                return build_here(folder, run)
            kept = KeptRun(folder, self.settings.layout.mirror(folder))
            with run.comparable(called, stage.NAME, kept) as compared:
                compared.params(flatten(dict(recipe.options)))
                compared.tags({"stage": recipe.stage, "fingerprint": recipe.fingerprint})
                return build_here(folder, compared)

        def build(folder: Path) -> Built:
            nonlocal started
            asked = time.monotonic()
            with self.at_work(stage):
                started += time.monotonic() - asked  # waiting is no part of what it costs
                return build_tracked(folder)

        with self.run.child(called) as run:
            run.params(flatten(dict(recipe.options)))
            for name, digest in recipe.inputs.items():
                run.dataset(name, digest, self.settings.layout.root)
            artifact, cached = build_artifact(self.settings.layout, recipe, build, self.answers)
            run.metrics(numbers(artifact.summary))
            _tag(run, artifact, cached)
        seconds = time.monotonic() - started
        logger.info("%s: %s %s (%.1f s)", recipe.stage, "cached" if cached else "built", artifact.path, seconds)
        stage.accept(artifact)
        if not cached:
            stage.tell(artifact, made, self.run)
        return StageResult(artifact, cached, label)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten `{"a": {"b": 1}}` to `{"a.b": 1}`: MLflow's parameters have no levels."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _with_notes(built: Built, run: TrackedRun, started: float) -> Built:
    notes = {
        "seconds": round(time.monotonic() - started, 2),
        "tracking_run": run.id,
        "tracking_link": run.link,
        "host": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in _RECORDED_VERSIONS},
        **built.notes,
    }
    return Built(built.summary, notes)


def numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an artifact's summary, which a tracker can plot."""
    return {name: value for name, value in summary.items() if isinstance(value, int | float)}


def _tag(run: TrackedRun, artifact: Artifact, cached: bool) -> None:
    tags = {"stage": artifact.stage, "artifact": str(artifact.path), "fingerprint": artifact.fingerprint}
    tags |= {"digest": artifact.digest, "cached": str(cached).lower()}
    if run.id != (made_by := BuildNotes.of(artifact).tracking_run):
        tags["made_by_run"] = made_by
    run.tags(tags)
