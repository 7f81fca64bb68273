"""One Prefect task per stage, named as the stage. A task calls the stage and shows what came of it, nothing more."""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from inspect import getdoc
from pathlib import Path
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows.caching import may_heal, state_of
from pipeline.kclip_build import STAGES
from pipeline.workspace import StageResult
from storage.artifact import Artifact

Stage = Callable[..., StageResult]
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


TASKS: dict[Stage, StageTask] = {stage: stage_task(stage) for stage in STAGES}


class StageRunner:
    """Calls stages as tasks: what `pipeline.kclip_build` takes as its `run_stage`, inside a flow run.

    Results are the stages' own, in this process. Artifacts that one stage made and another takes become edges of the
    graph in Prefect's UI.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._made: dict[Path, State[StageResult]] = {}

    def __call__(self, stage: Stage, *arguments: Any, **inputs: Any) -> StageResult:
        """Raises what the stage raises."""
        named = TASKS[stage].with_options(task_run_name=f"{stage.__name__}-{self._label}")
        upstream = [self._made[path] for path in _artifact_paths([*arguments, *inputs.values()]) if path in self._made]
        state: Any = named(*arguments, **inputs, wait_for=upstream, return_state=True)  # Prefect's own keywords
        result: StageResult = state.result()
        self._made[result.artifact.path] = state
        return result


def _artifact_paths(values: Iterable[Any]) -> Iterator[Path]:
    for value in values:
        if isinstance(value, Artifact):
            yield value.path
        elif isinstance(value, tuple):
            yield from _artifact_paths(value)
