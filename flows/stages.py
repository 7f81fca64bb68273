"""One Prefect task per stage, named as the stage. A task calls the stage and shows what came of it, nothing more."""

from collections.abc import Iterable, Iterator
from functools import wraps
from inspect import getdoc
from pathlib import Path
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows.caching import may_heal, state_of
from pipeline.evaluate.evaluate import evaluate
from pipeline.make_demo_segmentation import make_demo_segmentation
from pipeline.pretrain import pretrain
from pipeline.report.build_report import report
from pipeline.wiring.base import Stage, StageCall
from pipeline.wiring.tokens import TOKEN_STAGES
from pipeline.workspace import StageResult
from storage.artifact import Artifact

StageTask = Task[..., State[StageResult]]

RETRY_DELAYS = [10.0, 60.0]  # seconds; a stage goes on with the units that it had finished


def stage_task(stage: Stage) -> StageTask:
    """The task of a stage: without Prefect's result cache, tried again after failures that can heal."""

    @wraps(stage)
    def call(*arguments: Any, **inputs: Any) -> State[StageResult]:
        return state_of(stage(*arguments, **inputs))

    decorate = task(
        name=stage.__name__,
        description=(getdoc(stage) or "").partition("\n\n")[0],
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRY_DELAYS),
        retry_delay_seconds=RETRY_DELAYS,
        retry_condition_fn=may_heal,
    )
    return decorate(call)


STAGES: tuple[Stage, ...] = (*TOKEN_STAGES, pretrain, make_demo_segmentation, evaluate, report)
TASKS: dict[Stage, StageTask] = {stage: stage_task(stage) for stage in STAGES}


class StageRunner:
    """Calls stages as tasks: what the chains in `pipeline.wiring` take as their `run_stage`, inside a flow run.

    Results are the stages' own, in this process. Artifacts that one stage made and another takes become edges of the
    graph in Prefect's UI.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._made: dict[Path, State[StageResult]] = {}

    def __call__(self, call: StageCall) -> StageResult:
        """Raises what the stage raises."""
        named = TASKS[call.stage].with_options(task_run_name=f"{call.name}-{self._label}")
        artifacts = _artifact_paths([*call.arguments, *call.inputs.values()])
        upstream = [self._made[path] for path in artifacts if path in self._made]
        # `wait_for` and `return_state` are Prefect's own keywords.
        state: Any = named(*call.arguments, **call.inputs, wait_for=upstream, return_state=True)
        result: StageResult = state.result()
        self._made[result.artifact.path] = state
        return result


def _artifact_paths(values: Iterable[Any]) -> Iterator[Path]:
    for value in values:
        if isinstance(value, Artifact):
            yield value.path
        elif isinstance(value, tuple):
            yield from _artifact_paths(value)
