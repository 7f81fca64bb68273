"""What every flow of this project does: run its chain of stages as tasks, tracked, and show the result in Prefect's UI.

Stopped in any way (failed, cancelled, killed), a run is started again: finished stages are found, unfinished ones
go on.
"""

import logging
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import httpx
from prefect import Flow, flow, runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger
from prefect.states import Completed, Failed

from flows.cells import CellRuns
from flows.gpu_places import gpu_places
from flows.parameters import REFUSED, resolved
from flows.run_logs import pipeline_logs_in_prefect, print_to
from flows.scale_out import prefect_shards
from flows.stages import NodeRunner
from pipeline.chains.by_name import CHAINS
from pipeline.chains.graph import FlowResult, Graph
from pipeline.chains.run import run, run_in_jobs
from pipeline.commands.run_names import name_of_run
from pipeline.configuration.config import KClipBuildConfig
from pipeline.engine.disk_space import readable_bytes
from pipeline.engine.errors import USER_ERRORS
from pipeline.engine.settings import load_settings
from pipeline.engine.stage_record import BuildNotes
from pipeline.engine.workspace import StageResult, Workspace
from pipeline.stages.report.report import HTML, MARKDOWN, Report

logger = logging.getLogger("mapet.stages")


def run_name() -> str:
    """Name a run after the time and its deployment, which is named after its preset: parameters are not read yet."""
    of = runtime.deployment.name or runtime.flow_run.flow_name
    cell = runtime.flow_run.parameters.get("cell", "")  # as flows/cells.py asks for it
    return "-".join(word for word in (of, cell, f"{datetime.now(UTC):%Y%m%d-%H%M%S}") if word)


def say_how_to_go_on(flow: Flow[..., object], flow_run: FlowRun, state: State[object]) -> None:
    """Tell in the logs of a run that did not complete how it can go on.

    The arguments' names are Prefect's: workers call hooks by keyword.
    """
    if (state.message or "").startswith(REFUSED):
        return
    flow_run_logger(flow_run, flow).warning(
        "%s. Finished stages and shards are kept: run it again with the same parameters (in the UI: Retry; or `prefect "
        "flow-run retry %s`) and it goes on where it stopped.",
        state.name,
        flow_run.id,
    )


def mapet_flow(name: str) -> Any:
    """Make a function a flow, by Prefect's `@flow` with what all flows here have in common."""
    hooks: list[Any] = [say_how_to_go_on]
    return flow(
        name=name,
        flow_run_name=run_name,
        validate_parameters=False,  # flows/parameters.py does
        persist_result=False,
        on_failure=hooks,
        on_cancellation=hooks,
        on_crashed=hooks,
    )


def run_chain(
    name: str,
    model: type[KClipBuildConfig],
    config: object,
    overrides: object,
    *,
    cell: str = "",
    cells_as_runs: bool = False,
) -> State[FlowResult]:
    """Run the chain called `name` inside a flow run, with `config` and `overrides` over what its deployment says.

    Of a grid, `cell` is the one that is made, and `cells_as_runs` has all of them made by other flow runs.

    Completes with its `FlowResult`; fails with one sentence when something is the user's to put right. Where things are
    kept and on which device is the worker's to say (`MAPET_DATA_ROOT`, `MAPET_DEVICE`, ...).
    """
    # No `remembered_stops` here: Prefect takes a cancellation for a crash unless SIGTERM's handler is its very own. A
    # stop that Python swallows is followed by SIGKILL, half a minute later.
    with pipeline_logs_in_prefect():
        try:
            wanted = resolved(model, config, overrides)
            label = str(runtime.deployment.name or wanted.images.kind)
            settings = load_settings()
            print_to(settings.layout.root / "services" / "runs.log")
            graph = CHAINS[name].graph(wanted, settings)
            tasks, at_work, cells = NodeRunner(label), gpu_places(settings), None
            if cells_as_runs and not cell:
                cells = CellRuns(graph, wanted, tasks, at_work)
            untracked = Workspace(
                settings, map_shards=prefect_shards(settings), at_work=cells.at_work if cells else at_work
            )
            with untracked.tracked(name_of_run(name, label, wanted), wanted) as workspace:
                workspace.run.tags({"prefect.flow_run": str(runtime.flow_run.id)})
                result = run(graph, workspace, cells) if cells else _run(graph, workspace, tasks, cell)
        except USER_ERRORS as error:
            return Failed(message=str(error))
    try:
        _show_in_prefect(name, result, workspace)
    except httpx.TransportError as error:  # everything is done; the run ends well if the server is back by then
        logger.warning("Prefect's server does not answer (%s): the tables of this run are missing there", error)
    built = [one.label for one in result.results if not one.cached]
    if result.failures:
        failed = "; ".join(f"{failure.part}: {failure.reason}" for failure in result.failures)
        return Failed(message=f"{len(result.failures)} failed, everything else is done. {failed}")
    main = (result.results[-1] if cell else result[CHAINS[name].product]).artifact.path
    return Completed(message=f"{main}; built: {', '.join(built) or 'nothing, every stage was cached'}", data=result)


def _run(graph: Graph, workspace: Workspace, tasks: NodeRunner, cell: str) -> FlowResult:
    return run_in_jobs(graph, workspace, tasks, attrgetter("name"), make_in_job=tasks.in_job, cell=cell)


def _show_in_prefect(name: str, result: FlowResult, workspace: Workspace) -> None:
    table = [_row(one) for one in result.results]
    create_table_artifact(table, key=f"{name}-stages", description="The stages of the run")
    for one in result.results:
        if one.stage == Report.NAME:
            folder = one.artifact.path
            # Pictures lie beside the report: a browser cannot load them through Prefect, so the text says where they
            # are.
            where = f"With figures: `{folder / HTML}`. MLflow run `{workspace.run.id}`."
            text = (folder / MARKDOWN).read_text(encoding="utf-8")
            create_markdown_artifact(f"{where}\n\n{text}", key=f"{name}-report", description="The report of the run")


def _row(result: StageResult) -> dict[str, str | float | None]:
    artifact = result.artifact
    return {
        "stage": result.label,
        "state": "cached" if result.cached else "built",
        "seconds to build": BuildNotes.of(artifact).seconds,
        "size": readable_bytes(artifact.bytes),
        "artifact": str(artifact.path),
    }
