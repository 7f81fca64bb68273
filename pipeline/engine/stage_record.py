"""What an artifact says of itself, as types with fields: what its stage made (`Record`), how that went (`BuildNotes`),
and what it was made from (`RecipeView`).

On the disk all three are mappings (`summary`, `notes` and `recipe` of `artifact.json`). They are read through these
types, so that the name of a field stands in one place: nobody else looks into the mappings by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.engine.errors import PipelineError
from storage.artifact import Artifact, Built

Read = TypeVar("Read", bound=BaseModel)


class RecordUnreadable(PipelineError):
    """An artifact lacks what its stage records today, or has something else in its place."""


@dataclass(frozen=True)
class Noted:
    """Marks a field that lies among the notes, on which a result does not depend; the other fields lie in the
    summary."""


@dataclass(frozen=True)
class Others:
    """Marks a field that holds whatever else the summary has, by its names there without `suffix`."""

    suffix: str = ""


class Record(BaseModel):
    """What a stage says of its result. A field that is None is not written.

    Attributes:
        STAGE: whose it is; the name of the stage.
    """

    model_config = ConfigDict(frozen=True)
    STAGE: ClassVar[str]

    @classmethod
    def of(cls, artifact: Artifact) -> Self:
        """Raises RecordUnreadable when the artifact does not say it."""
        values = {}
        for name, field in cls.model_fields.items():
            if others := _others(field.metadata):
                values[name] = _found(artifact.summary, others, besides=cls.model_fields)
            elif name in (place := artifact.notes if _is_noted(field.metadata) else artifact.summary):
                values[name] = place[name]
        return validated(cls, values, artifact)

    def built(self, how: Mapping[str, Any]) -> Built:
        """Return what a stage returns once it has written its content. `how`: it went, by the names of `BuildNotes`."""
        summary: dict[str, Any] = {}
        notes: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if others := _others(field.metadata):
                summary |= {f"{key}{others.suffix}": number for key, number in value.items()}
            elif value is not None:
                (notes if _is_noted(field.metadata) else summary)[name] = value
        return Built(summary, {**notes, **how})


class Part(BaseModel):
    """How much of a part of the work was done, and in how many seconds."""

    model_config = ConfigDict(frozen=True)
    amount: float
    seconds: float


class BuildNotes(BaseModel):
    """How an artifact of any stage was made; nothing but the seconds and the run is known of all of them.

    Attributes:
        seconds: of the build; of one that was resumed, those of its last part.
        tracking_run: MLflow's id, and the address of that run; "" without tracking.
        host, versions: of the machine, and of the libraries that results depend on.
        images_per_second, data_wait_share: of the main work, and the share of its time in which it waited for images.
        device, processes: on what, and on how many of these.
        watt_hours: that all of them used, where they say so.
        parts: what the time went into (`pipeline/engine/parts.py`).
    """

    model_config = ConfigDict(frozen=True)
    seconds: float | None = None
    tracking_run: str = ""
    tracking_link: str = ""
    host: str = ""
    versions: Mapping[str, str] = Field(default_factory=dict)
    images_per_second: float | None = None
    data_wait_share: float | None = None
    device: str | None = None
    processes: int = 1
    watt_hours: float | None = None
    parts: Mapping[str, Part] = Field(default_factory=dict)

    @classmethod
    def of(cls, artifact: Artifact) -> Self:
        """Raises RecordUnreadable when something else stands there."""
        return validated(cls, artifact.notes, artifact)


class Digests(BaseModel):
    """Digests of an artifact's inputs; "" for an input that it does not have."""

    model_config = ConfigDict(frozen=True)
    images: str = ""
    tokens: str = ""
    pretrain: str = ""


class RecipeView(BaseModel):
    """What readers want to know of a stage's recipe: the choices that define its result, and `inputs`.

    Values are taken as they were recorded: an artifact outlives the options that the code knows.
    """

    model_config = ConfigDict(frozen=True)
    inputs: Digests

    @classmethod
    def of(cls, artifact: Artifact) -> Self:
        """Raises RecordUnreadable when the artifact does not say it."""
        return validated(cls, {**artifact.recipe.options, "inputs": artifact.recipe.inputs}, artifact)


def validated(kind: type[Read], values: Mapping[str, Any], artifact: Artifact) -> Read:
    """Return what an artifact says, as that type. Raises RecordUnreadable."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise RecordUnreadable(
            f"{artifact.path}: its record is not what {artifact.stage} writes today ({name}: {first['msg']}); delete "
            "the folder and run the command that made it again"
        ) from None


def _found(summary: Mapping[str, Any], others: Others, *, besides: Mapping[str, Any]) -> dict[str, Any]:
    names = [name for name in summary if name not in besides and name.endswith(others.suffix)]
    return {name.removesuffix(others.suffix): summary[name] for name in names}


def _others(metadata: list[Any]) -> Others | None:
    return next((mark for mark in metadata if isinstance(mark, Others)), None)


def _is_noted(metadata: list[Any]) -> bool:
    return any(isinstance(mark, Noted) for mark in metadata)
