"""One Prefect task per stage, named as the stage. A task makes the stage and shows what came of it, nothing more."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from inspect import getdoc
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows.caching import should_retry, state_of
from pipeline.chains.graph import Node, Outcome
from pipeline.engine.stage import Source, Stage
from pipeline.engine.workspace import StageResult
from pipeline.stages.demo.make_demo_images import MakeDemoImages
from pipeline.stages.demo.make_demo_segmentation import MakeDemoSegmentation
from pipeline.stages.demo.train_demo_clip import TrainDemoClip
from pipeline.stages.evaluate.evaluate import Evaluate
from pipeline.stages.extract_features import ExtractFeatures
from pipeline.stages.fit_codebook import FitCodebook
from pipeline.stages.fit_vqkd import FitVQKD
from pipeline.stages.index_images import IndexImages
from pipeline.stages.pretrain import Pretrain
from pipeline.stages.report.report import Report
from pipeline.stages.store_squares import StoreSquares
from pipeline.stages.tokenize_images import TokenizeImages

StageTask = Task[..., State[StageResult]]

RETRY_DELAYS = [10.0, 60.0]  # seconds; a stage goes on with the shards that it had finished


def stage_task(stage: type[Stage]) -> StageTask:
    """Make the task of a stage: without Prefect's result cache, tried again after failures that may pass."""

    def make_stage(make: Callable[[], StageResult]) -> State[StageResult]:
        return state_of(make())

    decorate = task(
        name=stage.NAME,
        description=(getdoc(stage) or "").partition("\n\n")[0],
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRY_DELAYS),
        retry_delay_seconds=RETRY_DELAYS,
        retry_condition_fn=should_retry,
    )
    return decorate(make_stage)


STAGES: tuple[type[Stage], ...] = (
    MakeDemoImages,
    IndexImages,
    TrainDemoClip,
    ExtractFeatures,
    FitCodebook,
    FitVQKD,
    TokenizeImages,
    StoreSquares,
    Pretrain,
    MakeDemoSegmentation,
    Evaluate,
    Report,
)
TASKS: dict[type[Stage], StageTask] = {stage: stage_task(stage) for stage in STAGES}


class NodeRunner:
    """Makes the nodes of a graph as tasks: what `pipeline.chains` takes as its `make_node`, inside a flow run.

    A task computes in the process of the flow, in its main thread, or waits in another for the process of a job that
    computes: what stages set for a whole process (torch's threads, kernels, the current GPU) is never two stages'. And
    a stop, which Python hands to the main thread, reaches both. The edges of the graph are those in Prefect's UI.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._made: dict[Source, State[StageResult]] = {}

    def __call__(self, node: Node, make: Callable[[], StageResult]) -> StageResult:
        """Make the stage of a node as a task; raises what the stage raises."""
        # `wait_for` and `return_state` are Prefect's own keywords.
        state: Any = self._task(node)(make, wait_for=self._upstream(node), return_state=True)
        result: StageResult = state.result()
        self._made[node.stage] = state
        return result

    def in_job(self, node: Node, make: Callable[[], Future[StageResult]]) -> Outcome:
        """Have a job make the stage of a node, as a task in a thread of its own: a `MakeInJob`."""
        waiting: Any = self._task(node).submit(lambda: make().result(), wait_for=self._upstream(node))
        return _OutcomeOfTask(waiting.wrapped_future, partial(self._made.__setitem__, node.stage))

    def _task(self, node: Node) -> StageTask:
        return TASKS[type(node.stage)].with_options(task_run_name=f"{node.name}-{self._label}")

    def _upstream(self, node: Node) -> list[Any]:
        taken = dict.fromkeys(node.stage.upstream)
        return [self._made[source] for source in taken if source in self._made]


@dataclass(frozen=True)
class _OutcomeOfTask:
    """What comes of a task in another thread. `keep` is given its state if it succeeds: Prefect runs no task whose
    upstream failed, and a report does without what could not be made."""

    state: Future[State[StageResult]]
    keep: Callable[[State[StageResult]], None]

    def done(self) -> bool:
        return self.state.done()

    def result(self) -> StageResult:
        state: Any = self.state.result()
        result: StageResult = state.result()
        self.keep(state)
        return result
