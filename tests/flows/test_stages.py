"""Tasks of stages: which there are, and which failures they try again after."""

import asyncio
import errno
from concurrent.futures import Future
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import exception_to_failed_state

import pipeline.stages
from flows.caching import should_retry
from flows.stages import TASKS, NodeRunner
from pipeline.chains.graph import Node
from pipeline.configuration.config import KClipBuildConfig
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.inputs import ImageLocation, Images
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.stage import Made, Stage
from pipeline.engine.workspace import StageResult, Workspace
from pipeline.stages.import_tokens import ImportTokens  # of a command, and of no chain
from pipeline.stages.index_images import IndexImages
from pipeline.stages.report.report import Report
from storage.errors import ArtifactDamaged
from tests.builds import make_photos
from tests.flows.prefect_server import PrefectServer, wait_for


def test_every_stage_of_a_chain_has_a_task_with_its_help() -> None:
    packages = walk_packages(pipeline.stages.__path__, f"{pipeline.stages.__name__}.")
    kinds = [kind for found in packages for kind in vars(import_module(found.name)).values() if isinstance(kind, type)]
    stages = {kind for kind in kinds if issubclass(kind, Stage) and "NAME" in vars(kind)} - {ImportTokens}
    assert set(TASKS) == stages
    assert len({task.name for task in TASKS.values()}) == len(stages)
    assert all(task.description for task in TASKS.values())


def test_prefect_keeps_no_results_of_stages() -> None:
    assert all(task.persist_result is False for task in TASKS.values())


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale"), TimeoutError(), ConnectionError()],
)
def test_a_hiccup_of_a_file_system_or_network_is_tried_again(error: Exception) -> None:
    assert should_retry(None, None, asyncio.run(exception_to_failed_state(error)))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError(errno.EACCES, "Permission denied"),
        PipelineError("a mistake"),
        ArtifactDamaged("damaged"),
        ValueError("a bug"),
    ],
)
def test_mistakes_full_disks_and_bugs_are_not_tried_again(error: Exception) -> None:
    assert not should_retry(None, None, asyncio.run(exception_to_failed_state(error)))


@pytest.mark.servers
def test_tasks_of_jobs_end_each_with_its_own_job_and_go_again_after_a_hiccup(
    server: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ImageSourceOptions(path=str(make_photos(tmp_path / "photos", train=1, val=1)))
    nodes = [
        Node(IndexImages(ImageLocation(source.model_copy(update={"identity": identity}))), KClipBuildConfig())
        for identity in ("listing", "content")
    ]
    made = Workspace(Settings(data_root=tmp_path / "data")).make(nodes[0].stage, Made(Settings(data_root=tmp_path)))
    lost, hiccup, second = Future[StageResult](), Future[StageResult](), Future[StageResult]()
    lost.set_exception(PipelineError("no images"))
    hiccup.set_exception(OSError(errno.EIO, "Input/output error"))
    monkeypatch.setitem(TASKS, IndexImages, TASKS[IndexImages].with_options(retry_delay_seconds=0))

    @flow
    def at_once() -> None:
        runner, tries = NodeRunner("test"), iter([hiccup, second])
        waiting, failed = runner.in_job(nodes[0], lambda: next(tries)), runner.in_job(nodes[1], lambda: lost)
        wait_for("the end of the one that fails", failed.done, 60)
        with pytest.raises(PipelineError, match=r"^no images$"):
            failed.result()
        assert not waiting.done()
        second.set_result(made)
        wait_for("the end of the other", waiting.done, 60)
        assert waiting.result() == made
        report = Report(
            Images(nodes[0].stage, nodes[0].stage.location), nodes[0].stage, DecodingOptions(), (nodes[1].stage,)
        )
        assert runner(Node(report, KClipBuildConfig()), lambda: made) == made, "it does without what failed"

    with temporary_settings({PREFECT_API_URL: server.url}):
        at_once(return_state=True).result()
