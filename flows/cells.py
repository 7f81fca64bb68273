"""Cells of a reproduction as flow runs of their own, on as many machines as have workers: `cells_as_runs`.

The run of the whole grid makes what belongs to no cell. When it comes to the first one it asks for a run of each, of
its own deployment and as sub-flows of its own; it waits for them, finds what they have made, and reports on it. A cell
is a pre-training with its evaluations; its run makes those and, unless somebody has, whatever they take. Workers share
a data root or an object store: an artifact is built once, whichever run is first.
"""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.states import AwaitingRetry
from pydantic import Field

from pipeline.chains.graph import Graph, MakeNode, Node
from pipeline.configuration.config import KClipBuildConfig
from pipeline.engine.errors import PipelineError
from pipeline.engine.stage import Stage
from pipeline.engine.stops import raise_if_stopped
from pipeline.engine.workspace import AtWork, StageResult

logger = logging.getLogger("mapet.stages")

CELL: Any = Field(
    default="",
    description="Make only this cell of the grid (`mapet-seed1`: its pre-training and evaluations) and what it takes; "
    "empty: all of them, and the report.",
)
CELLS_AS_RUNS: Any = Field(
    default=False,
    description="Have each cell made by a flow run of its own, on any worker of the work pool, which can be cancelled "
    "and retried. Workers share a data root or an object store, and this run takes the place of one while it waits.",
)

_POLL_SECONDS = 2.0
_PATIENCE = 60.0  # seconds until it is said that no worker takes the runs


@dataclass(frozen=True)
class FoundOnly:
    """An `AtWork` that refuses to build what the runs of cells were to make."""

    others: AtWork
    instead: dict[Stage, str] = field(default_factory=dict)  # why a stage that is not there is not made here

    def __call__(self, stage: Stage) -> AbstractContextManager[object]:
        if stage in self.instead:
            raise PipelineError(self.instead[stage])
        return self.others(stage)


class CellRuns:
    """A `MakeNode` for a flow run that has the cells of its graph made by runs of their own."""

    def __init__(self, graph: Graph, config: KClipBuildConfig, make_node: MakeNode, at_work: AtWork) -> None:
        """Prepare to ask for the runs.

        Args:
            make_node: makes, or finds, a node in this run.
            at_work: of what is made in this run.

        Raises:
            PipelineError: this run has no deployment, or there is no place for another run.
        """
        self._cells, self._config, self._make_node = graph.cells, config, make_node
        self._own, self._deployment = _of_deployment()
        require_place_beside(self._deployment)
        self._runs: dict[str, FlowRun] = {}
        self._said: set[str] = set()
        self.at_work = FoundOnly(at_work)

    def __call__(self, node: Node, make: Callable[[], StageResult]) -> StageResult:
        """Make a node, or wait for the run of its cell and find it."""
        if node.cell:
            if not self._runs:
                self._runs = {cell: self._asked_for(cell) for cell in self._cells}
            self.at_work.instead[node.stage] = _why_not_here(self._ended(node.cell))
        return self._make_node(node, make)

    def _asked_for(self, cell: str) -> FlowRun:
        """Ask for the run of a cell. A run of the grid that is tried again has the runs that it had: those that failed
        are tried again, too."""
        parameters = {"config": self._config.model_dump(mode="json"), "overrides": [], "cell": cell}
        run: Any = run_deployment(  # Prefect's dispatcher is typed as both, awaitable and not
            self._deployment,
            parameters={**parameters, "cells_as_runs": False},
            timeout=0,
            idempotency_key=f"{self._own}/{cell}",
        )
        if _is_final(run) and not run.state.is_completed():
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
                run = client.read_flow_run(run.id)
        logger.info("%s is made by the flow run %s", cell, run.name)
        return run

    def _ended(self, cell: str) -> FlowRun:
        """Wait for the end of a cell's run, also of a server that is away."""
        since = time.monotonic()
        while not _is_final(run := self._runs[cell]):
            raise_if_stopped()
            time.sleep(_POLL_SECONDS)
            try:
                with get_client(sync_client=True) as client:
                    self._runs[cell] = client.read_flow_run(run.id)
            except httpx.HTTPError as error:
                self._say_once("Prefect's server does not answer (%s): waiting for it and for %s", error, run.name)
            if time.monotonic() - since > _PATIENCE and not any(map(_is_taken, self._runs.values())):
                self._say_once(
                    "no worker has taken the run %s. This one holds a worker's place while it waits: the work pool "
                    "needs another worker, or its worker a place for another run",
                    run.name,
                )
        return run

    def _say_once(self, words: str, *values: object) -> None:
        if words not in self._said:
            self._said.add(words)
            logger.warning(words, *values)


def _of_deployment() -> tuple[UUID, UUID]:
    """Return the ids of this flow run and its deployment."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        raise PipelineError("cells_as_runs: cells can be runs of their own in a run of a deployment only; start it so")
    return context.flow_run.id, context.flow_run.deployment_id


def require_place_beside(deployment: UUID) -> None:
    """Require that other runs of a deployment can begin while one waits for them.

    Raises:
        PipelineError: its work pool takes one run at a time.
    """
    with get_client(sync_client=True) as client:
        name = client.read_deployment(deployment).work_pool_name
        places = client.read_work_pool(name).concurrency_limit if name else None
    if places is not None and places < 2:
        raise PipelineError(
            f"cells_as_runs: the work pool {name} has a place for one run, which this one takes while it waits; start "
            "more workers (`make down`, `make up RUNS=2`), and raise the pool's limit in Prefect if it was set there"
        )


def _is_final(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


def _is_taken(run: FlowRun) -> bool:
    return run.state is not None and not run.state.is_scheduled()


def _why_not_here(run: FlowRun) -> str:
    assert run.state is not None
    if run.state.is_completed():
        return (
            f"the flow run {run.name} has completed, and what it was to make is not here: give all workers one data "
            "root (MAPET_DATA_ROOT) or one object store (MAPET_REMOTE_ROOT)"
        )
    said = f": {run.state.message}" if run.state.message else ""
    return f"the flow run {run.name} made it, which ended as {run.state.name}{said}"
