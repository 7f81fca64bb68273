"""A graph of stages of which several are made at once: a node as soon as all that it takes is there.

Nodes begin in the order of the graph. What is cached is found in this process. So are the indices of images and the
report made, and whatever would be alone: a process of its own would gain nothing. The others are jobs
(`pipeline/engine/jobs.py`), each in a place with its share of the GPUs.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import wait
from typing import Any, Self

from pipeline.chains.cached import is_published
from pipeline.chains.graph import (
    FlowResult,
    Graph,
    MakeInJob,
    MakeNode,
    Node,
    Outcome,
    Walk,
    make_in_job_directly,
)
from pipeline.chains.sharing import Sharing
from pipeline.engine.errors import PipelineError
from pipeline.engine.jobs import Done, JobProcess, Line, Order, Setup
from pipeline.engine.progress import Bar, Rows
from pipeline.engine.stage import Made, Stage
from pipeline.engine.stops import raise_if_stopped
from pipeline.engine.workspace import StageResult, Workspace
from pipeline.stages.index_images import IndexImages
from pipeline.stages.report.report import Report

logger = logging.getLogger("mapet.stages")
_SECONDS_BETWEEN_LOOKS = 0.3
_QUICK = (IndexImages.NAME, Report.NAME)
Title = Callable[[Node], str]


def run_at_once(
    graph: Graph,
    workspace: Workspace,
    make_node: MakeNode,
    *,
    make_in_job: MakeInJob = make_in_job_directly,
    sharing: Sharing,
    title: Title,
    check: Callable[[Made], None],
) -> FlowResult:
    """Make, or find, the artifact of every node.

    Args:
        make_node: makes a node in this process.
        make_in_job: has a job make one.
        title: what stands before each line of a job.
        check: as in `run_graph`.

    Raises:
        PipelineError: as `run_graph`. What is under way then is stopped, and has written its checkpoints.
    """
    walk = Walk(graph, workspace, check)
    with _Jobs(workspace, sharing, title, make_in_job) as jobs:
        return _Scheduler(graph, workspace, make_node, walk, jobs).run()


@dataclass
class _Scheduler:
    graph: Graph
    workspace: Workspace
    make_node: MakeNode
    walk: Walk
    jobs: "_Jobs"

    def __post_init__(self) -> None:
        self._waiting = list(self.graph.nodes)
        self._stages = {node.stage for node in self.graph.nodes}
        self._new: set[Stage] = set()  # of the waiting, those that are not cached

    def run(self) -> FlowResult:
        while self._waiting or self.jobs.running:
            raise_if_stopped()
            self._waiting = [node for node in self._waiting if not self.walk.lose(node)]
            ready = [node for node in self._waiting if self._is_ready(node)]
            here = next((node for node in ready if self._is_for_here(node, alone=len(ready) == 1)), None)
            if here is not None:
                self._waiting.remove(here)
                self._settle(here, partial(self.make_node, here, self._maker(here)))
                continue
            for node in ready[: self.jobs.free]:
                self._waiting.remove(node)
                self.jobs.start(node, self.walk.made)
            for node, outcome in self.jobs.finished():
                self._settle(node, outcome)
        return self.walk.result()

    def _is_ready(self, node: Node) -> bool:
        """Return whether all that it takes is there. Before the main images, and what is wrong with the run, are known,
        only the first is."""
        if not self.walk.is_decided(self.graph.index.stage):
            return node is self._waiting[0]
        taken = self._stages.intersection(node.stage.upstream)
        return all(map(self.walk.is_decided, taken))

    def _is_for_here(self, node: Node, *, alone: bool) -> bool:
        if node.kind in _QUICK or (alone and not self.jobs.running) or not self.jobs.sharing.has_place_for(node):
            return True
        if node.stage not in self._new and is_published(node.stage, self.walk.made):
            return True
        self._new.add(node.stage)
        return False

    def _maker(self, node: Node) -> Callable[[], StageResult]:
        return partial(self.workspace.make, node.stage, self.walk.made)

    def _settle(self, node: Node, outcome: Callable[[], StageResult]) -> None:
        try:
            result = outcome()
        except Exception as error:
            self.walk.fail(node, error)
        else:
            self.walk.keep(node, result)


@dataclass
class _Place:
    """Where one job runs at a time, in a process that stays for the next one. It is a node's until that is done."""

    environment: dict[str, str]
    process: JobProcess | None = None
    node: Node | None = None
    outcome: Outcome | None = None
    asked: tuple[Order, Future[StageResult]] | None = None  # what is not handed to the process yet
    job: Future[StageResult] | None = None  # what the process makes

    def ask_for(self, order: Order) -> Future[StageResult]:
        """Ask for a job, in any thread. The main one starts it when it looks: what a thread starts ends with it."""
        job: Future[StageResult] = Future()
        self.asked = order, job
        return job

    def end(self, done: Done) -> None:
        """Say what came of the job, if there is one."""
        job, self.job = self.job, None
        if job is not None and done.result is not None:
            job.set_result(done.result)
        elif job is not None:
            job.set_exception(done.error)

    def stop(self) -> None:
        """Have its process stop, and whoever waits for it."""
        if self.process is not None:
            self.process.stop()
        for job in (self.job, self.asked and self.asked[1]):
            if job is not None:
                job.set_exception(KeyboardInterrupt())


class _Jobs:
    """The places for jobs. To be entered; whatever still runs at the end is stopped."""

    def __init__(self, workspace: Workspace, sharing: Sharing, title: Title, make_in_job: MakeInJob) -> None:
        self.sharing, self._title, self._make_in_job = sharing, title, make_in_job
        # What hands shards to other processes may need this one, as that of a flow run does; the settings say it, too.
        self._workspace = replace(workspace.of_job(sharing.jobs), map_shards=None)
        self._places = [_Place(dict(environment)) for environment in sharing.environments]
        self._rows = Rows()
        self._is_said = self._is_over = False

    def __enter__(self) -> Self:
        self._rows.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._is_over = True
        processes = [place.process for place in self._places if place.process is not None]
        for place in self.running:
            place.stop()
        try:
            for process in processes:
                process.close()
        finally:
            for process in processes:
                process.kill()  # where somebody is in a hurry
            self._rows.__exit__(*error)

    @property
    def running(self) -> list[_Place]:
        return [place for place in self._places if place.node is not None]

    @property
    def free(self) -> int:
        return len(self._places) - len(self.running)

    def start(self, node: Node, made: Made) -> None:
        """Have a free place make the node."""
        self._say_once()
        place = next(place for place in self._places if place.node is None)
        place.node = node
        self._rows.add(self._title(node))
        taken = {source: made[source] for source in node.stage.upstream if source in made}
        workspace = self._workspace
        order = Order(node.stage, workspace.made(taken), workspace.answers, workspace.at_work)
        place.outcome = self._make_in_job(node, partial(self._ask_for, place, order))
        self._hand_over(place)

    def finished(self) -> Iterator[tuple[Node, Callable[[], StageResult]]]:
        """Pass on what the jobs say, and yield those that have ended since, each with what returns its result or raises
        its error."""
        for place in self.running:
            self._hand_over(place)
        wait([place.process.messages for place in self.running if place.process], _SECONDS_BETWEEN_LOOKS)
        for place in self.running:
            node, outcome = place.node, place.outcome
            self._listen(place)
            if node is not None and outcome is not None and outcome.done():
                place.node = place.outcome = None
                self._rows.remove(self._title(node))
                yield node, outcome.result

    def _ask_for(self, place: _Place, order: Order) -> Future[StageResult]:
        if self._is_over:
            raise KeyboardInterrupt
        return place.ask_for(order)

    def _hand_over(self, place: _Place) -> None:
        """Give an order that somebody has asked for to the process of its place."""
        if place.asked is None:
            return
        (order, place.job), place.asked = place.asked, None
        if place.process is None:
            setup = Setup(self._workspace.settings, self._workspace.run.elsewhere(), self._rows.are_shown)
            place.process = JobProcess(setup, place.environment)
        place.process.make(order)

    def _listen(self, place: _Place) -> None:
        if place.node is None or place.process is None:
            return
        try:
            for message in place.process.received():
                match message:
                    case Line(name, level, text):
                        logging.getLogger(name).log(level, "%s: %s", self._title(place.node), text)
                    case Bar():
                        self._rows.show(self._title(place.node), message)
                    case Done():
                        place.end(message)
        except PipelineError as error:  # the process died
            place.process.close()
            place.process = None
            place.end(Done(error=error))

    def _say_once(self) -> None:
        if not self._is_said:
            logger.info("%s", self.sharing.words)
        self._is_said = True
