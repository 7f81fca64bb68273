"""A graph of stages of which several are made at once: a node as soon as all that it takes is there.

Nodes begin in the order of the graph. What is cached is found in this process. So are the indices of images and the
report made, and whatever would be alone: a process of its own would gain nothing. The others are jobs
(`pipeline/engine/jobs.py`), each in a place with its share of the GPUs.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from typing import Any, Self

from pipeline.chains.cached import is_published
from pipeline.chains.graph import FlowResult, Graph, MakeNode, Node, Walk
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
    sharing: Sharing,
    title: Title,
    check: Callable[[Made], None],
) -> FlowResult:
    """Make, or find, the artifact of every node.

    Args:
        make_node: makes a node in this process.
        title: what stands before each line of a job.
        check: as in `run_graph`.

    Raises:
        PipelineError: as `run_graph`. What is under way then is stopped, and has written its checkpoints.
    """
    walk = Walk(graph, workspace, check)
    with _Jobs(workspace, sharing, title) as jobs:
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
        taken = self._stages.intersection((*node.stage.takes, *node.stage.may_take))
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
    """Where one job runs at a time, in a process that stays for the next one."""

    environment: dict[str, str]
    process: JobProcess | None = None
    node: Node | None = None


class _Jobs:
    """The places for jobs. To be entered; whatever still runs at the end is stopped."""

    def __init__(self, workspace: Workspace, sharing: Sharing, title: Title) -> None:
        self.sharing, self._title = sharing, title
        self._workspace = workspace.of_job(sharing.jobs)
        self._places = [_Place(dict(environment)) for environment in sharing.environments]
        self._rows = Rows()
        self._is_said = False

    def __enter__(self) -> Self:
        self._rows.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        processes = [place.process for place in self._places if place.process is not None]
        for place in self._places:
            if place.process is not None and place.node is not None:
                place.process.stop()
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
        if place.process is None:
            setup = Setup(self._workspace.settings, self._workspace.run.elsewhere(), self._rows.are_shown)
            place.process = JobProcess(setup, place.environment)
        place.node = node
        self._rows.add(self._title(node))
        taken = {source: made[source] for source in (*node.stage.takes, *node.stage.may_take) if source in made}
        place.process.make(Order(node.stage, self._workspace.made(taken), self._workspace.answers))

    def finished(self) -> Iterator[tuple[Node, Callable[[], StageResult]]]:
        """Pass on what the jobs say, and yield those that have ended since, each with what returns its result or raises
        its error."""
        wait([place.process.messages for place in self.running if place.process], _SECONDS_BETWEEN_LOOKS)
        for place in self.running:
            node, done = place.node, self._news(place)
            if node is not None and done is not None:
                place.node = None
                self._rows.remove(self._title(node))
                yield node, done.outcome

    def _news(self, place: _Place) -> Done | None:
        assert place.node is not None
        assert place.process is not None
        try:
            for message in place.process.received():
                match message:
                    case Line(name, level, text):
                        logging.getLogger(name).log(level, "%s: %s", self._title(place.node), text)
                    case Bar():
                        self._rows.show(self._title(place.node), message)
                    case Done():
                        return message
        except PipelineError as error:  # the process died
            place.process.close()
            place.process = None
            return Done(error=error)
        return None

    def _say_once(self) -> None:
        if not self._is_said:
            logger.info("%s", self.sharing.words)
        self._is_said = True
