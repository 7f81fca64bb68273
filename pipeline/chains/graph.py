"""A graph of stages, in an order in which they can be made, and how it is run."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from pipeline.data.inputs import ImageLocation, Images
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.errors import USER_ERRORS, PipelineError
from pipeline.engine.stage import Given, Made, Source, Stage
from pipeline.engine.stops import raise_if_stopped
from pipeline.engine.words import did_you_mean
from pipeline.engine.workspace import StageResult, Workspace, numbers
from pipeline.stages.evaluate.evaluate import Evaluate
from pipeline.stages.index_images import IndexImages

logger = logging.getLogger("mapet.stages")
SCRATCH = "scratch"  # of a backbone that was not pre-trained


@dataclass(frozen=True)
class Node:
    """A stage of a graph.

    Attributes:
        config: of the part of the run that it belongs to: of its tokenizer, its cell.
        variant: tells nodes of one kind of stage apart.
        part: what of the run comes to nothing if it fails, in words; "" for the whole run.
        cell: of a grid, by its name; "" for what belongs to none.
    """

    stage: Stage
    config: Any
    variant: str = ""
    part: str = ""
    cell: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.variant}" if self.variant else self.kind

    @property
    def kind(self) -> str:
        """The stage's name."""
        return self.stage.NAME

    @property
    def protocol(self) -> str:
        """Of an evaluation."""
        return self.stage.protocol if isinstance(self.stage, Evaluate) else ""

    @property
    def section(self) -> str:
        """Whose options an evaluation has: its protocol's, but for fine-tuning from scratch."""
        stage = self.stage
        is_scratch = isinstance(stage, Evaluate) and stage.protocol == "fine_tune" and stage.pretrained is None
        return SCRATCH if is_scratch else self.protocol

    @property
    def source(self) -> ImageSourceOptions:
        """Of the images that it reads."""
        of: Images | ImageLocation | None = getattr(self.stage, "images", getattr(self.stage, "location", None))
        location = of.location if isinstance(of, Images) else of
        source: ImageSourceOptions = location.options if location else self.config.images
        return source


@dataclass(frozen=True)
class Graph:
    """Nodes, each after those whose artifacts it takes; equal stages are one node."""

    nodes: tuple[Node, ...]

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> "Graph":
        """Build the graph of these nodes, in their order; of nodes with equal stages the first is kept."""
        unique: dict[Stage, Node] = {}
        for node in nodes:
            unique.setdefault(node.stage, node)
        return cls(tuple(unique.values()))

    @property
    def names(self) -> list[str]:
        return [node.name for node in self.nodes]

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of the grid's cells, in their order; none of a graph that is no grid's."""
        return tuple(dict.fromkeys(node.cell for node in self.nodes if node.cell))

    def of_cell(self, name: str) -> "Graph":
        """Return the nodes of one cell, the image index, and whatever they take.

        Raises:
            PipelineError: there is no such cell.
        """
        if name not in self.cells:
            raise PipelineError(
                f"cell={name}: the grid has {', '.join(self.cells) or 'none'}{did_you_mean(name, self.cells)}"
            )
        wanted: set[Source] = {self.index.stage}
        for node in reversed(self.nodes):
            if node.cell == name or node.stage in wanted:
                wanted.update((node.stage, *node.stage.upstream))
        return Graph(tuple(node for node in self.nodes if node.stage in wanted))

    @property
    def index(self) -> Node:
        """Of the main images."""
        return next(node for node in self.nodes if isinstance(node.stage, IndexImages))

    @property
    def given(self) -> tuple[Given, ...]:
        """Artifacts that somebody names, which have to be there before anything is made."""
        sources = (source for node in self.nodes for source in node.stage.takes)
        return tuple(dict.fromkeys(source for source in sources if isinstance(source, Given)))


MakeNode = Callable[[Node, Callable[[], StageResult]], StageResult]
"""Calls what makes a node's artifact, and does something before and after it."""


def make_directly(node: Node, make: Callable[[], StageResult]) -> StageResult:
    return make()


class Outcome(Protocol):
    """What comes of a node that is made elsewhere; such as a `Future`."""

    def done(self) -> bool: ...

    def result(self) -> StageResult:
        """Return what it made, once it is done; raises what went wrong."""


MakeInJob = Callable[[Node, Callable[[], Future[StageResult]]], Outcome]
"""Calls what has a job make a node, perhaps in a thread of its own, and once more when that fails; returns at once."""


def make_in_job_directly(node: Node, make: Callable[[], Future[StageResult]]) -> Outcome:
    return make()


@dataclass(frozen=True)
class Failure:
    """A part of a run that came to nothing, and why."""

    part: str
    reason: str


@dataclass(frozen=True)
class FlowResult:
    """What a run produced, node by node, and what it could not."""

    results: tuple[StageResult, ...]
    failures: tuple[Failure, ...] = ()

    def __getitem__(self, stage: str) -> StageResult:
        """Return the first result of a stage."""
        return next(result for result in self.results if result.stage == stage)

    @property
    def all_cached(self) -> bool:
        return not self.failures and all(result.cached for result in self.results)


class Walk:
    """How far a run of a graph has come: what is made, what failed, and what comes to nothing for that.

    Attributes:
        made: what the stages look up.
    """

    def __init__(self, graph: Graph, workspace: Workspace, check: Callable[[Made], None]) -> None:
        """Begin. `check` is called once the first image index is there, before anything else is made."""
        self._graph, self._workspace, self._check = graph, workspace, check
        self.made = workspace.made()
        for given in graph.given:
            self.made[given]
        self._results: dict[Stage, StageResult] = {}
        self._failures: dict[Stage, Failure] = {}
        self._lost: set[Source] = set()

    def lose(self, node: Node) -> bool:
        """Return whether what the node takes came to nothing; then it does, too."""
        if self._lost.isdisjoint(node.stage.takes):
            return False
        self._lost.add(node.stage)
        return True

    def is_decided(self, stage: Source) -> bool:
        """Return whether it is made, or never will be."""
        return stage in self.made or stage in self._lost

    def keep(self, node: Node, result: StageResult) -> None:
        """Take a node's result; raises what the check raises."""
        # On the parent run too: MLflow's table of runs then compares them without opening one.
        summary = numbers(result.artifact.summary)
        self._workspace.run.metrics({f"{node.name}/{name}": value for name, value in summary.items()})
        if node.variant and result.label == node.kind:  # nothing else would tell it from its twin
            result = replace(result, label=f"{node.kind} {node.variant}")
        self.made.artifacts[node.stage] = result.artifact
        self._results[node.stage] = result
        if node is self._graph.index:
            self._check(self.made)

    def fail(self, node: Node, error: Exception) -> None:
        """Take what went wrong with a node; raises it where it is no part that the others can do without."""
        if not node.part:
            raise error
        self._lost.add(node.stage)
        self._failures[node.stage] = _failure(node.part, error)

    def result(self) -> FlowResult:
        """Return what came of it, in the order of the graph. Raises PipelineError if everything that was tried
        failed."""
        stages = [node.stage for node in self._graph.nodes]
        results = tuple(self._results[stage] for stage in stages if stage in self._results)
        failures = tuple(self._failures[stage] for stage in stages if stage in self._failures)
        if failures and not results:
            raise PipelineError(failures[0].reason)
        return FlowResult(results, failures)


def run_graph(
    graph: Graph, workspace: Workspace, make_node: MakeNode = make_directly, *, check: Callable[[Made], None]
) -> FlowResult:
    """Make, or find, the artifact of every node, one after the other.

    A part that fails does not keep the others from running; what takes its artifacts is left out.

    Args:
        check: is called once the first image index is there, before anything else is made.

    Raises:
        PipelineError: everything that was tried failed. What a node raises that has no part passes through.
    """
    walk = Walk(graph, workspace, check)
    for node in graph.nodes:
        raise_if_stopped()
        if walk.lose(node):
            continue
        try:
            result = make_node(node, partial(workspace.make, node.stage, walk.made))
        except Exception as error:
            walk.fail(node, error)
        else:
            walk.keep(node, result)
    return walk.result()


def _failure(part: str, error: Exception) -> Failure:
    if not isinstance(error, (*USER_ERRORS, OSError)):  # a full disk or a lost file needs no traceback either
        logger.exception("%s failed", part)
    reason = str(error) or type(error).__name__
    logger.error("%s failed, the rest goes on: %s", part, reason)
    return Failure(part, reason)


def in_part(nodes: Iterable[Node], part: str) -> Iterator[Node]:
    """Give the nodes that have no part of their own this one: it comes to nothing if they fail."""
    return (node if node.part else replace(node, part=part) for node in nodes)


def in_cell(nodes: Iterable[Node], cell: str) -> Iterator[Node]:
    """Give the nodes to a cell of a grid."""
    return (replace(node, cell=cell) for node in nodes)


def stages_of(nodes: Sequence[Node]) -> tuple[Stage, ...]:
    return tuple(node.stage for node in nodes)
