"""What a build would do, and why: which stages are cached, which will run, what they cost. Nothing is built."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import Any

from pipeline.chains.by_name import CHAINS
from pipeline.chains.cached import is_recipe_known
from pipeline.chains.costs import Cost, cost_of
from pipeline.chains.costs import total_words as words_of_all
from pipeline.chains.counted_sources import CountedSources
from pipeline.chains.evaluate import unjudged_protocols
from pipeline.chains.graph import Node
from pipeline.configuration.config import EvaluateConfig, KClipBuildConfig
from pipeline.engine.disk_space import readable_bytes
from pipeline.engine.errors import USER_ERRORS
from pipeline.engine.settings import Settings
from pipeline.engine.stage import Made, Source, Stage
from pipeline.engine.workspace import Workspace, flatten
from pipeline.stages.evaluate.protocols import KEPT_BY
from storage.artifact import Artifact, Recipe, find_artifact, list_artifacts
from storage.errors import ArtifactDamaged, ArtifactMissing
from storage.layout import Layout


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


def plan(flow: str, config: KClipBuildConfig, settings: Settings) -> list[PlannedStage]:
    """Look at every stage of a run. Loads the encoder's weights where they were not seen before (their hash counts).

    Whatever is to run, or to be loaded, has to be possible: that is looked at first, and imports torch.

    Raises:
        PipelineError: the images are not there, or an option cannot be what it is (`pipeline/chains/checks.py`).
    """
    graph = CHAINS[flow].graph(config, settings)
    made = Workspace(settings).made()
    for given in graph.given:
        made[given]
    planned: dict[Stage, PlannedStage] = {}
    counted = CountedSources()  # each source is listed once, for what cannot be and for what it costs
    possible = _Possible(graph.nodes, counted, settings)
    waits_for: dict[Source, str] = {}  # what has to run before the stage is there
    for node in graph.nodes:
        if graph.index.stage in planned and not is_recipe_known(node.stage, made):
            possible.require()
        planned[node.stage] = _look(node, made, waits_for)
        if node is graph.index and node.stage in made:
            counted.add(node.source, made[node.stage].path)
        if graph.index.stage in planned and any(one.state != "cached" for one in planned.values()):
            possible.require()
    if not _has_usual_machine(settings) or any(unjudged_protocols(graph.nodes)):
        possible.require()
    return [_with_cost(planned[node.stage], node, counted, settings) for node in graph.nodes]


@dataclass
class _Possible:
    """Whether a run can be, looked at once."""

    nodes: Sequence[Node]
    counted: CountedSources
    settings: Settings
    is_looked_at: bool = False

    def require(self) -> None:
        """Raises as `require_possible`."""
        if not self.is_looked_at:
            # torch, which a plan of what is cached need not wait for
            from pipeline.chains.checks import require_possible

            require_possible(self.nodes, self.counted, self.settings)
            self.is_looked_at = True


def _has_usual_machine(settings: Settings) -> bool:
    """Return whether the settings name no device and no further processes, which might not be there."""
    return settings.device == "auto" and settings.processes * settings.nodes == 1


def _look(node: Node, made: Made, waits_for: dict[Source, str]) -> PlannedStage:
    """Say where the artifact of a node is, or why it is not there; puts it into `made`, or what has to run first into
    `waits_for`."""
    stage = node.stage
    needed = (source for source in stage.upstream if source not in stage.spared_by)
    if missing := next((source for source in needed if source not in made), None):
        waits_for[stage] = waits_for[missing]
        return PlannedStage(node.name, "after", f"needs {waits_for[missing]} first")
    waits_for[stage] = node.name
    try:
        if work := stage.preparation(made):
            return PlannedStage(node.name, "run", work)
        recipe = made.recipe(stage)
        artifact = find_artifact(made.settings.layout, recipe)
        stage.accept(artifact)
    except ArtifactMissing:
        return _missing(node, made.recipe(stage), made.settings.layout)
    except ArtifactDamaged as error:
        return PlannedStage(node.name, "run", f"its artifact is damaged: {error}")
    except USER_ERRORS as error:
        return PlannedStage(node.name, "cannot", str(error))
    made.artifacts[stage] = artifact
    return PlannedStage(node.name, "cached", str(artifact.path))


def _missing(node: Node, recipe: Recipe, layout: Layout) -> PlannedStage:
    if layout.remote and layout.remote.has(recipe.stage, recipe.fingerprint):
        return PlannedStage(node.name, "fetch", f"is on {layout.remote.folder.url}")
    if layout.partial(recipe.stage, recipe.fingerprint).exists():
        return PlannedStage(node.name, "run", "begun and not finished; goes on")
    return PlannedStage(node.name, "run", _why(recipe, list_artifacts(layout, recipe.stage)))


def _with_cost(planned: PlannedStage, node: Node, counted: CountedSources, settings: Settings) -> PlannedStage:
    if planned.state not in ("run", "after"):
        return planned
    from pipeline.chains.workloads import workload_of

    try:
        workload = workload_of(node, counted(node))
    except USER_ERRORS:  # why it cannot be is said of the stage
        return planned
    return replace(planned, cost=cost_of(workload, list_artifacts(settings.layout, node.kind)))


def kept_words(flow: str, config: KClipBuildConfig, planned: Sequence[PlannedStage]) -> str:
    """Say what `evaluate.keep_weights` leaves on the disk, of the trainings that are to run; "" for nothing."""
    if not isinstance(config, EvaluateConfig) or not config.evaluate.keep_weights:
        return ""
    from pipeline.stages.evaluate.kept_classifier import classifier_bytes

    there = {stage.stage for stage in planned if stage.state == "cached"}
    nodes = [node for node in CHAINS[flow].graph(config).nodes if node.protocol == KEPT_BY]
    sizes = [classifier_bytes(node.config.backbone) for node in nodes if node.name not in there]
    kept = "1 classifier" if len(sizes) == 1 else f"{len(sizes)} classifiers"
    return f"evaluate.keep_weights keeps {kept}, about {readable_bytes(sum(sizes))}" if sizes else ""


def total_words(planned: Sequence[PlannedStage]) -> str:
    """Return what a plan costs; "" where nothing is to run."""
    return words_of_all([stage.cost for stage in planned if stage.cost])


def _why(recipe: Recipe, others: list[Artifact]) -> str:
    """Return the difference between a recipe and the most similar one that has an artifact."""
    if not others:
        return "never made here"
    differences = [_differences(recipe.definition, other.recipe.definition) for other in others]
    return shorten("differs from the artifacts there are: " + min(differences, key=len), 340, placeholder=" ...")


def _differences(wanted: dict[str, Any], made: dict[str, Any]) -> str:
    new, old = flatten(wanted), flatten(made)
    changed = [name for name in sorted(new.keys() | old.keys()) if new.get(name) != old.get(name)]
    return "; ".join(f"{name} {_short(old.get(name))} -> {_short(new.get(name))}" for name in changed)


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
