"""What a build would do, and why: which stages are cached, which will run, what they cost. Nothing is built."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from pipeline.checks import CountedSources, require_possible
from pipeline.config import EvaluateConfig, KClipBuildConfig
from pipeline.costs import Cost, cost_of
from pipeline.costs import total_words as words_of_all
from pipeline.errors import USER_ERRORS
from pipeline.evaluate.kept_classifier import PROTOCOL as KEPT_BY
from pipeline.evaluate.kept_classifier import classifier_bytes
from pipeline.index_images import STAGE as INDEX_IMAGES
from pipeline.preflight import readable_bytes
from pipeline.settings import Settings
from pipeline.tracker import TrackedRun
from pipeline.wiring.base import ExpectedCall, NotRun, StageCall
from pipeline.wiring.flows import WIRINGS
from pipeline.workloads import workload_of
from pipeline.workspace import StageResult, Workspace, flatten
from storage.artifact import Artifact, Built, Recipe, find_artifact, list_artifacts
from storage.errors import ArtifactDamaged, ArtifactMissing


@dataclass(frozen=True)
class PlannedStage:
    """What would happen to one call of a stage.

    Attributes:
        state: `cached`, `fetch` from the object store, `run`, `after` another that has to run first, or `cannot`.
        cost: of one that is to run.
    """

    stage: str
    state: str
    reason: str
    cost: Cost | None = None


class _WouldRun(NotRun):
    """How the wiring is stopped at a missing artifact."""

    def __init__(self, stage: PlannedStage) -> None:
        self.stage = stage


@dataclass(frozen=True)
class _Planning(Workspace):
    """A workspace that finds artifacts and builds none."""

    def before(self, stage: str, work: str) -> None:
        raise _WouldRun(PlannedStage(stage, "run", work))

    def artifact(
        self,
        recipe: Recipe,
        build: Callable[[Path, TrackedRun], Built],
        *,
        label: str = "",
        distinction: str = "",
        compared_with: str = "",
    ) -> StageResult:
        layout = self.settings.layout
        try:
            return StageResult(find_artifact(layout, recipe), cached=True, label=label or recipe.stage)
        except ArtifactDamaged as error:
            raise _WouldRun(PlannedStage(recipe.stage, "run", f"its artifact is damaged: {error}")) from None
        except ArtifactMissing:
            if layout.remote and layout.remote.has(recipe.stage, recipe.fingerprint):
                there = f"is on {layout.remote.folder.url}"
                raise _WouldRun(PlannedStage(recipe.stage, "fetch", there)) from None
            begun = layout.partial(recipe.stage, recipe.fingerprint).exists()
            reason = "begun and not finished; goes on" if begun else _why(recipe, list_artifacts(layout, recipe.stage))
            raise _WouldRun(PlannedStage(recipe.stage, "run", reason)) from None


def plan(flow: str, config: KClipBuildConfig, settings: Settings) -> list[PlannedStage]:
    """Every stage of a run with what would happen to it. Loads the encoder's weights (their hash counts).

    Raises:
        PipelineError: the images are not there, or an option cannot be what it is (`pipeline/checks.py`).
    """
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
    calls = wiring.expected_calls(config)
    counted = CountedSources()
    for call in calls:
        if call.stage == INDEX_IMAGES and (index := seen.get(call.name)) and index.state == "cached":
            counted.add(call, Path(index.reason))
    indexed = seen.get(INDEX_IMAGES)
    if indexed is None or indexed.state != "cached":  # else the run itself has looked
        require_possible(calls, counted, settings)
    if troubles:  # not of a stage: what stands before the first that was not looked at
        first = next((call.name for call in calls if call.name not in seen), calls[-1].name)
        seen[first] = PlannedStage(first, "cannot", "; ".join(troubles))
    return _with_costs(_in_order([call.name for call in calls], seen), calls, counted, settings)


def _in_order(names: list[str], seen: Mapping[str, PlannedStage]) -> list[PlannedStage]:
    planned: list[PlannedStage] = []
    waits_for = names[0]
    for name in names:
        stage = seen.get(name)
        is_last = name == names[-1] and any(other.state != "cached" for other in planned)  # takes what all others made
        if stage is None or (is_last and stage.state == "cached"):
            stage = PlannedStage(name, "after", f"needs {waits_for} first")
        if stage.state in ("fetch", "run", "cannot"):
            waits_for = name
        planned.append(stage)
    return planned


def _with_costs(
    planned: list[PlannedStage], calls: Sequence[ExpectedCall], counted: CountedSources, settings: Settings
) -> list[PlannedStage]:
    made: dict[str, list[Artifact]] = {call.stage: list_artifacts(settings.layout, call.stage) for call in calls}

    def cost(call: ExpectedCall) -> Cost | None:
        try:
            return cost_of(workload_of(call, counted(call)), made[call.stage])
        except USER_ERRORS:  # why it cannot be is said of the stage
            return None

    return [
        replace(stage, cost=cost(call)) if stage.state in ("run", "after") else stage
        for stage, call in zip(planned, calls, strict=True)
    ]


def kept_words(flow: str, config: KClipBuildConfig, planned: Sequence[PlannedStage]) -> str:
    """What `evaluate.keep_weights` leaves on the disk of the trainings that are to run; "" for nothing."""
    if not isinstance(config, EvaluateConfig) or not config.evaluate.keep_weights:
        return ""
    there = {stage.stage for stage in planned if stage.state == "cached"}
    calls = [call for call in WIRINGS[flow].expected_calls(config) if call.protocol == KEPT_BY]
    sizes = [classifier_bytes(call.config.backbone) for call in calls if call.name not in there]
    kept = "1 classifier" if len(sizes) == 1 else f"{len(sizes)} classifiers"
    return f"evaluate.keep_weights keeps {kept}, about {readable_bytes(sum(sizes))}" if sizes else ""


def total_words(planned: Sequence[PlannedStage]) -> str:
    """What a plan costs; "" where nothing is to run."""
    return words_of_all([stage.cost for stage in planned if stage.cost])


def _why(recipe: Recipe, others: list[Artifact]) -> str:
    """The difference between a recipe and the most similar one that has an artifact."""
    if not others:
        return "never made here"
    differences = [_differences(recipe.definition, dict(other.recipe)) for other in others]
    return shorten("differs from the artifacts there are: " + min(differences, key=len), 340, placeholder=" ...")


def _differences(wanted: dict[str, Any], made: dict[str, Any]) -> str:
    new, old = flatten(wanted), flatten(made)
    changed = [name for name in sorted(new.keys() | old.keys()) if new.get(name) != old.get(name)]
    return "; ".join(f"{name} {_short(old.get(name))} -> {_short(new.get(name))}" for name in changed)


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
