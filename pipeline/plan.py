"""What a build would do, and why: which stages are cached, which will run, what they cost. Nothing is built."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from models.clip import outline_clip
from models.raw_patches import RawPatchEncoder
from pipeline.config import KClipBuildConfig, PretrainConfig
from pipeline.costs import TrainingCost, readable_hours, training_cost
from pipeline.data.sources import open_source
from pipeline.data.sources.base import ImageSourceOptions, Scan
from pipeline.errors import USER_ERRORS
from pipeline.index_images import index_of
from pipeline.preflight import readable_bytes
from pipeline.settings import Settings
from pipeline.tracker import TrackedRun
from pipeline.wiring.base import ExpectedCall, NotRun, StageCall
from pipeline.wiring.flows import WIRINGS
from pipeline.workspace import StageResult, Workspace, flatten
from storage.artifact import Artifact, Built, Recipe, find_artifact, list_artifacts
from storage.errors import ArtifactDamaged, ArtifactMissing
from storage.image_index import ImageIndex

# Images per second of an RTX 4090, channels-last, mixed precision: timm's published inference results.
_PUBLISHED_RATES = {"RN50x64": 164.0, "RN50x16": 441.0}


@dataclass(frozen=True)
class PlannedStage:
    """What would happen to one call of a stage.

    Attributes:
        state: `cached`, `run`, `after` another that has to run first, or `cannot`.
        cost: of a training that is not cached, where its images can be counted.
    """

    stage: str
    state: str
    reason: str
    cost: TrainingCost | None = None


@dataclass(frozen=True)
class Estimate:
    """What a build costs: disk in bytes, and hours of encoding where the encoder's speed is known."""

    images: int
    sample_bytes: int
    token_bytes: int
    hours: float | None
    rate: str  # where the speed comes from


class _WouldRun(NotRun):
    """How the wiring is stopped at a missing artifact."""

    def __init__(self, stage: PlannedStage) -> None:
        self.stage = stage


@dataclass(frozen=True)
class _Planning(Workspace):
    """A workspace that finds artifacts and builds none."""

    def say(self, what: str) -> None:
        """Nothing: who shows a plan shows `images_in_words` with it."""

    def artifact(
        self, recipe: Recipe, build: Callable[[Path, TrackedRun], Built], *, label: str = "", compared_with: str = ""
    ) -> StageResult:
        layout = self.settings.layout
        try:
            return StageResult(find_artifact(layout, recipe), cached=True, label=label or recipe.stage)
        except ArtifactDamaged as error:
            raise _WouldRun(PlannedStage(recipe.stage, "run", f"its artifact is damaged: {error}")) from None
        except ArtifactMissing:
            if layout.remote and layout.remote.has(recipe.stage, recipe.fingerprint):
                there = f"on {layout.remote.folder.url}; would be downloaded"
                raise _WouldRun(PlannedStage(recipe.stage, "run", there)) from None
            begun = layout.partial(recipe.stage, recipe.fingerprint).exists()
            reason = "begun and not finished; goes on" if begun else _why(recipe, list_artifacts(layout, recipe.stage))
            raise _WouldRun(PlannedStage(recipe.stage, "run", reason)) from None


def plan(flow: str, config: KClipBuildConfig, settings: Settings) -> list[PlannedStage]:
    """Every stage of a run with what would happen to it. Loads the encoder's weights (their hash counts)."""
    seen: dict[str, PlannedStage] = {}
    troubles: list[str] = []

    def look(call: StageCall) -> StageResult:
        try:
            result = call.run()
        except _WouldRun as missing:
            seen[call.name] = replace(missing.stage, stage=call.name)
            raise
        except USER_ERRORS as error:
            seen[call.name] = PlannedStage(call.name, "cannot", str(error))
            raise _WouldRun(seen[call.name]) from None
        seen[call.name] = PlannedStage(call.name, "cached", str(result.artifact.path))
        return result

    wiring = WIRINGS[flow]
    try:
        result = wiring.run(config, _Planning(settings), run_stage=look)
        troubles += [failure.reason for failure in result.failures]
    except NotRun:
        pass
    except USER_ERRORS as error:
        troubles.append(str(error))
    calls = wiring.expected_calls(config)
    if troubles:  # not of a stage: what stands before the first that was not looked at
        first = next((call.name for call in calls if call.name not in seen), calls[-1].name)
        seen[first] = PlannedStage(first, "cannot", "; ".join(troubles))
    return _with_costs(_in_order([call.name for call in calls], seen), calls, config, settings)


def _in_order(names: list[str], seen: Mapping[str, PlannedStage]) -> list[PlannedStage]:
    planned: list[PlannedStage] = []
    waits_for = names[0]
    for name in names:
        stage = seen.get(name)
        is_last = name == names[-1] and any(other.state != "cached" for other in planned)  # takes what all others made
        if stage is None or (is_last and stage.state == "cached"):
            stage = PlannedStage(name, "after", f"needs {waits_for} first")
        if stage.state in ("run", "cannot"):
            waits_for = name
        planned.append(stage)
    return planned


def _with_costs(
    planned: list[PlannedStage], calls: Sequence[ExpectedCall], config: KClipBuildConfig, settings: Settings
) -> list[PlannedStage]:
    if not any(call.config for call in calls) or (images := _train_images(planned, config)) is None:
        return planned
    return [
        stage if stage.state == "cached" else replace(stage, cost=training_cost(call, images, settings))
        for stage, call in zip(planned, calls, strict=True)
    ]


def _train_images(planned: list[PlannedStage], config: KClipBuildConfig) -> int | None:
    """How many images would be trained on; None where nobody knows yet."""
    split = config.pretrain.train_split if isinstance(config, PretrainConfig) else "train"
    indexed = next(stage for stage in planned if stage.stage == "index_images")
    if indexed.state == "cached":
        return ImageIndex.read(Path(indexed.reason)).splits.get(split, 0)
    if indexed.state == "run" and config.images.kind != "demo":
        return _indexed(config.images).splits.get(split, 0)
    return None


def images_in_words(config: KClipBuildConfig) -> str:
    """What was understood of the images; "" for the demo's, which may not be drawn yet, and where a plan says why
    nothing was."""
    if config.images.kind == "demo":
        return ""
    try:
        return f"{config.images.path}: {_scanned(config.images).in_words()}"
    except USER_ERRORS:
        return ""


@lru_cache(maxsize=1)  # a plan asks several times
def _scanned(source: ImageSourceOptions) -> Scan:
    return open_source(source).scan()


@lru_cache(maxsize=1)
def _indexed(source: ImageSourceOptions) -> ImageIndex:
    return index_of(_scanned(source), source)


def total_words(planned: Sequence[PlannedStage]) -> str:
    """What the trainings of a plan cost together; "" without any."""
    costs = [stage.cost for stage in planned if stage.cost]
    if not costs:
        return ""
    known = [cost for cost in costs if cost.device_hours is not None]
    unknown = len(costs) - len(known)
    devices = " and ".join(dict.fromkeys(cost.measured_on.partition(" x ")[2] for cost in known))
    words = [f"{readable_hours(sum(cost.device_hours or 0 for cost in known))} of one {devices}"] if known else []
    words += [f"{unknown} of a kind that has not run here yet"] if unknown else []
    return f"{len(costs)} trainings to run: {', '.join(words)}"


def estimate(config: KClipBuildConfig, settings: Settings) -> Estimate | None:
    """Disk and time of a build that clusters features; None for other tokenizers, whose tokens are all they leave, and
    for the demo (megabytes, minutes). Raises USER_ERRORS like the stages."""
    if config.images.kind == "demo" or config.tokenizer in ("vqkd", "dalle"):
        return None
    if config.tokenizer == "kclip" and config.clip.model == "demo":
        return None
    encoder = RawPatchEncoder(config.pixels) if config.tokenizer == "pixels" else outline_clip(config.clip)
    index = _indexed(config.images)
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
