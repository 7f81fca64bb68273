"""A stage of the pipeline as a value: it says what it would make before it makes it.

Whatever makes it (torch, matplotlib, ...) is imported inside `build`: seconds that a plan, a cached run and the form of
a flow need not wait for. So the module of a stage, and whatever its `recipe` calls, imports none of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pipeline.engine.map_shards import MapShards
from pipeline.engine.settings import Settings
from pipeline.engine.shard_mappers import shard_mapper_of
from pipeline.engine.tracker import TrackedRun
from storage.artifact import Artifact, Built, Recipe

Found = TypeVar("Found")


class Source:
    """What has an artifact: a stage, or what is given in place of one."""


class Given(Source, ABC):
    """An artifact that is at hand: it is read, never made."""

    @abstractmethod
    def read(self) -> Artifact:
        """Raises ArtifactMissing or ArtifactDamaged."""


@dataclass(frozen=True)
class Made:
    """What a stage can look up: the artifacts of the stages that it takes, and this machine. To be pickled.

    Attributes:
        map_shards: hands shards of images to other processes, instead of what the settings ask for.
    """

    settings: Settings
    artifacts: dict[Source, Artifact] = field(default_factory=dict)
    map_shards: MapShards | None = None
    _found: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def once(self, key: Any, find: Callable[[], Found]) -> Found:
        """Return what a stage finds out for its recipe, kept for its build. `key`: the stage and a word."""
        if key not in self._found:
            self._found[key] = find()
        found: Found = self._found[key]
        return found

    def recipe(self, stage: "Stage") -> Recipe:
        """Return the recipe of a stage, which is asked for it once."""
        return self.once((stage, "recipe"), lambda: stage.recipe(self))

    def forget(self, stage: "Stage") -> None:
        """Let go of what it found out: a list of all images is large, and may be another one when it is tried again."""
        for key in [key for key in self._found if isinstance(key, tuple) and key[0] == stage]:
            del self._found[key]

    def portable(self, *sources: Source | None) -> "Made":
        """Return a copy for another process, with the artifacts of these sources alone."""
        kept = {source: self[source] for source in sources if source is not None}
        return Made(self.settings, kept)

    def __getitem__(self, source: Source) -> Artifact:
        """Raises ArtifactMissing or ArtifactDamaged for one that is given and not what it should be."""
        if isinstance(source, Given) and source not in self.artifacts:
            return self.once(source, source.read)
        return self.artifacts[source]

    def __contains__(self, source: Source) -> bool:
        return isinstance(source, Given) or source in self.artifacts

    def get(self, source: Source | None) -> Artifact | None:
        """Return the artifact of a source, or None for no source."""
        return None if source is None else self[source]

    @property
    def shard_mapper(self) -> MapShards | None:
        """What hands shards of images to other processes; None: this process encodes them."""
        return self.map_shards or shard_mapper_of(self.settings)


@dataclass(frozen=True)
class Stage(Source, ABC):
    """One step, with its options and the stages whose artifacts it takes as fields. Equal ones make the same.

    Attributes:
        NAME: of the folder of its artifacts, of its runs in MLflow and its tasks in Prefect.
        VERSION: raised when a change of code changes what it makes.
        USES_GPU: whether it computes on one, where there is one.
        COMPARED: whether each building is a run of its own in the tracker, beside others of its kind.
    """

    NAME: ClassVar[str]
    VERSION: ClassVar[int] = 1
    USES_GPU: ClassVar[bool] = True
    COMPARED: ClassVar[bool] = False

    @property
    def takes(self) -> Iterator[Source]:
        """What it cannot do without: those of its fields, and of their fields, that have an artifact."""
        return _sources_in(self)

    @property
    def may_take(self) -> tuple[Source, ...]:
        """Stages whose artifacts it takes where they could be made."""
        return self.spared_by

    @property
    def upstream(self) -> tuple[Source, ...]:
        """All that has to be made, or to have come to nothing, before it."""
        return (*self.takes, *self.may_take)

    @property
    def spared_by(self) -> tuple[Source, ...]:
        """Those of `may_take` that only spare it work: its recipe is the same without them."""
        return ()

    def preparation(self, made: Made) -> str:
        """Say what long work has to be done before the recipe is known; "" for none."""
        return ""

    @abstractmethod
    def recipe(self, made: Made) -> Recipe:
        """Say what would be made; `made` has all that the stage takes."""

    @abstractmethod
    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        """Write the content into `folder`, which may hold what a killed run has finished."""

    def accept(self, artifact: Artifact) -> None:
        """Raises PipelineError for an artifact that this run does not want, whoever made it."""

    def label(self, made: Made) -> str:
        """Return what the result is called, where the stage's name would not tell it from others of one command."""
        return self.NAME

    def distinction(self, made: Made) -> str:
        """Return what else tells its runs from their like in the tracker, where the runs of all commands stand
        together."""
        return ""

    def tell(self, artifact: Artifact, made: Made, run: TrackedRun) -> None:
        """Pass on what was just built to whom it concerns beside the stages that take it."""


def _sources_in(holder: Any) -> Iterator[Source]:
    for item in fields(holder):
        value = getattr(holder, item.name)
        if isinstance(value, Source):
            yield value
        elif is_dataclass(value):
            yield from _sources_in(value)


def recipe_of(stage: Stage, options: Mapping[str, Any], **inputs: str) -> Recipe:
    """Return the recipe of a stage from what of its options defines the result, and the digests of its inputs."""
    return Recipe(stage.NAME, stage.VERSION, dict(options), inputs)
