"""What a build would do, and why: which stages are cached, which will run, what they cost. Nothing is built."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.clip import outline_clip
from pipeline.config import KClipBuildConfig
from pipeline.data.sources import open_source
from pipeline.errors import USER_ERRORS
from pipeline.index_images import index_of
from pipeline.preflight import readable_bytes
from pipeline.settings import Settings
from pipeline.tracker import TrackedRun
from pipeline.wiring.base import StageCall
from pipeline.wiring.flows import WIRINGS
from pipeline.workspace import StageResult, Workspace, flatten
from storage.artifact import Artifact, Built, Recipe, find_artifact, list_artifacts
from storage.errors import ArtifactDamaged, ArtifactMissing

# Images per second of an RTX 4090, channels-last, mixed precision: timm's published inference results.
_PUBLISHED_RATES = {"RN50x64": 164.0, "RN50x16": 441.0}


@dataclass(frozen=True)
class PlannedStage:
    """What would happen to one stage: `cached`, `run`, or `after` another that has to run first."""

    stage: str
    state: str
    reason: str


@dataclass(frozen=True)
class Estimate:
    """What a build costs: disk in bytes, and hours of encoding where the encoder's speed is known."""

    images: int
    sample_bytes: int
    token_bytes: int
    hours: float | None
    rate: str  # where the speed comes from


class _WouldRun(Exception):
    """Not an error: how the wiring is stopped at the first missing artifact."""

    def __init__(self, stage: PlannedStage) -> None:
        self.stage = stage


@dataclass(frozen=True)
class _Planning(Workspace):
    """A workspace that finds artifacts and builds none."""

    def artifact(
        self, recipe: Recipe, build: Callable[[Path, TrackedRun], Built], *, label: str = "", compared_with: str = ""
    ) -> StageResult:
        layout = self.settings.layout
        try:
            return StageResult(find_artifact(layout, recipe), cached=True, label=label or recipe.stage)
        except ArtifactDamaged as error:
            raise _WouldRun(PlannedStage(recipe.stage, "run", f"its artifact is damaged: {error}")) from None
        except ArtifactMissing:
            begun = layout.partial(recipe.stage, recipe.fingerprint).exists()
            reason = "begun and not finished; goes on" if begun else _why(recipe, list_artifacts(layout, recipe.stage))
            raise _WouldRun(PlannedStage(recipe.stage, "run", reason)) from None


def plan(flow: str, config: KClipBuildConfig, settings: Settings) -> list[PlannedStage]:
    """Every stage of a run with what would happen to it. Loads the encoder's weights (their hash counts)."""
    planned: list[PlannedStage] = []

    def look(call: StageCall) -> StageResult:
        try:
            result = call.run()
        except _WouldRun as first:
            raise _WouldRun(replace(first.stage, stage=call.name)) from None
        planned.append(PlannedStage(call.name, "cached", str(result.artifact.path)))
        return result

    wiring = WIRINGS[flow]
    names = wiring.stage_names(config)
    try:
        wiring.run(config, _Planning(settings), run_stage=look)
    except _WouldRun as first:
        planned.append(first.stage)
    except USER_ERRORS as error:
        planned.append(PlannedStage(names[len(planned)], "cannot", str(error)))
    waiting = [PlannedStage(name, "after", f"needs {planned[-1].stage} first") for name in names[len(planned) :]]
    return planned + waiting


def estimate(config: KClipBuildConfig, settings: Settings) -> Estimate | None:
    """Disk and time of a build; None for the demo (megabytes, minutes). Raises USER_ERRORS like the stages."""
    if config.images.kind == "demo" or config.clip.model == "demo":
        return None
    encoder = outline_clip(config.clip)
    index = index_of(open_source(config.images).scan(), config.images)
    sampled = sum(count for split, count in index.splits.items() if split in config.features.splits)
    patches = encoder.grid[0] * encoder.grid[1]
    fraction = 1.0 if config.features.keep == "all" else config.features.sample_fraction
    rate, origin = _rate(encoder.name, settings)
    return Estimate(
        images=len(index),
        sample_bytes=round(sampled * patches * fraction) * encoder.width * 2,
        token_bytes=len(index) * patches * 2,
        hours=(sampled + len(index)) / rate / 3600 if rate else None,
        rate=origin,
    )


def describe(cost: Estimate) -> str:
    time = f"{cost.hours:.1f} hours of encoding at {cost.rate}" if cost.hours else f"time: {cost.rate}"
    return (
        f"{cost.images:,} images; disk: feature sample {readable_bytes(cost.sample_bytes)}, tokens "
        f"{readable_bytes(cost.token_bytes)}; {time}"
    )


def _rate(encoder: str, settings: Settings) -> tuple[float | None, str]:
    for made in list_artifacts(settings.layout, "extract_features"):
        if made.notes.get("encoder") == encoder and made.notes.get("images_per_second"):
            rate = float(made.notes["images_per_second"])
            return rate, f"{rate:.0f} images/s, measured here"
    published = _PUBLISHED_RATES.get(encoder.removesuffix("-quickgelu"))
    if published:
        return published, f"{published:.0f} images/s (one RTX 4090, published by timm)"
    return None, f"not known, {encoder} has not run here yet"


def _why(recipe: Recipe, others: list[Artifact]) -> str:
    """The difference between a recipe and the most similar one that has an artifact."""
    if not others:
        return "never made here"
    differences = [_differences(recipe.definition, dict(other.recipe)) for other in others]
    return "differs from the artifacts there are: " + min(differences, key=len)[:300]


def _differences(wanted: dict[str, Any], made: dict[str, Any]) -> str:
    new, old = flatten(wanted), flatten(made)
    changed = [name for name in sorted(new.keys() | old.keys()) if new.get(name) != old.get(name)]
    return "; ".join(f"{name} {_short(old.get(name))} -> {_short(new.get(name))}" for name in changed)


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
