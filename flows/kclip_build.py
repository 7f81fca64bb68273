"""The flow `kclip-build`: the same stages as `mapet kclip-build`, each one a task, with their report in Prefect's UI.

    prefect deployment run kclip-build/demo --watch

Stopped in any way (failed, cancelled, killed), it is run again: finished stages are found, unfinished ones go on.
"""

from datetime import UTC, datetime

from prefect import Flow, flow, runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger
from prefect.states import Completed, Failed

from flows.run_logs import pipeline_logs_in_prefect
from flows.stages import StageRunner
from pipeline import kclip_build as wiring
from pipeline.config import KClipBuildConfig
from pipeline.errors import USER_ERRORS
from pipeline.preflight import readable_bytes
from pipeline.report.kclip_report import HTML, MARKDOWN
from pipeline.settings import load_settings
from pipeline.workspace import StageResult, Workspace


def run_label() -> str:
    """What a run is of: its deployment, which is named after its preset, or the kind of its images."""
    return str(runtime.deployment.name or runtime.flow_run.parameters["config"].images.kind)


def run_name() -> str:
    return f"{run_label()}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def say_how_to_go_on(flow: Flow[..., object], flow_run: FlowRun, state: State[object]) -> None:
    """Hook of runs that did not complete. The names of the arguments are fixed: workers call hooks by keyword."""
    flow_run_logger(flow_run, flow).warning(
        "%s. Finished stages and units are kept: run it again with the same parameters (in the UI: Retry; or `prefect "
        "flow-run retry %s`) and it goes on where it stopped.",
        state.name,
        flow_run.id,
    )


@flow(
    name="kclip-build",
    flow_run_name=run_name,
    persist_result=False,
    on_failure=[say_how_to_go_on],
    on_cancellation=[say_how_to_go_on],
    on_crashed=[say_how_to_go_on],
)
def kclip_build(config: KClipBuildConfig) -> State[wiring.KClipBuild]:
    """Build the k-CLIP tokens of a data set, or find them: images, features, codebook, tokens, report.

    Completes with the `KClipBuild`; fails with one sentence when something is the user's to put right. Where things are
    kept and on which device is the worker's to say (`MAPET_DATA_ROOT`, `MAPET_DEVICE`, ...).
    """
    label = run_label()
    with pipeline_logs_in_prefect():
        try:
            with Workspace(load_settings()).tracked(f"kclip-build {label}", config) as workspace:
                workspace.run.tags({"prefect.flow_run": str(runtime.flow_run.id)})
                build = wiring.kclip_build(config, workspace, StageRunner(label))
        except USER_ERRORS as error:
            return Failed(message=str(error))
    _show_in_prefect(build, workspace)
    built = [result.stage for result in build.results if not result.cached]
    tokens = build["tokenize_images"].artifact.path
    return Completed(message=f"{tokens}; built: {', '.join(built) or 'nothing, every stage was cached'}", data=build)


def _show_in_prefect(build: wiring.KClipBuild, workspace: Workspace) -> None:
    table = [_row(result) for result in build.results]
    create_table_artifact(table, key="kclip-build-stages", description="The stages of the build")
    folder = build["report"].artifact.path
    # Pictures lie beside the report: a browser cannot load them through Prefect, so the text says where they are.
    places = f"With figures: `{folder / HTML}`. MLflow run `{workspace.run.id}`."
    text = (folder / MARKDOWN).read_text(encoding="utf-8")
    create_markdown_artifact(f"{places}\n\n{text}", key="kclip-build-report", description="The report of the build")


def _row(result: StageResult) -> dict[str, str | float]:
    artifact = result.artifact
    return {
        "stage": artifact.stage,
        "state": "cached" if result.cached else "built",
        "seconds to build": artifact.notes["seconds"],
        "size": readable_bytes(artifact.bytes),
        "artifact": str(artifact.path),
    }
