"""Cells of a reproduction as flow runs of their own: two workers, one cell that fails, and a second try."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cells import require_place_beside
from flows.reproduce import reproduce
from pipeline.chains.by_name import CHAINS
from pipeline.configuration.overrides import apply_overrides
from pipeline.configuration.presets import preset
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from pipeline.training.history import HISTORY
from storage.artifact import read_artifact
from tests.flows.conftest import Worker
from tests.flows.prefect_server import FlowRun, PrefectServer, running
from tests.flows.small_build import SMALL_OVERRIDES

pytestmark = pytest.mark.servers

OVERRIDES = [
    *SMALL_OVERRIDES,
    'grid.objectives=["mim","pim"]',
    "grid.tokens_only=[]",
    "grid.scratch=false",
    "training.epochs=1",
    "training.batch_size=16",
    'evaluate.protocols=["frozen_features"]',
    "frozen_features.training.epochs=1",
    "frozen_features.training.batch_size=16",
]


@dataclass(frozen=True)
class Tries:
    """A run of the grid that failed with one of its cells, and was tried again; the runs of its cells by their cell."""

    first: FlowRun
    first_cells: dict[str, FlowRun]
    second: FlowRun
    second_cells: dict[str, FlowRun]


@pytest.fixture(scope="module")
def tries(worker: Worker, first_runs: tuple[FlowRun, FlowRun], tmp_path_factory: pytest.TempPathFactory) -> Tries:
    """The run of the grid is in this process, which saves two starts; those of its cells are on workers, at first on
    one that was started elsewhere, then on the one that all tests share."""
    server, folder = worker.server, tmp_path_factory.mktemp("other")
    elsewhere = {**server.environment, "MAPET_DATA_ROOT": str(worker.data_root)}
    command = ("worker", "start", "--pool", "mapet", "--name", "other")
    deployment = server.get("/deployments/name/reproduce/demo")
    asked = {"parameters": {"overrides": OVERRIDES, "cells_as_runs": True}, "state": {"type": "PENDING"}}
    run = server.post(f"/deployments/{deployment['id']}/create_flow_run", asked)["id"]
    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_API_URL: server.url}):
        patch.setenv("MAPET_DATA_ROOT", str(worker.data_root))
        with _a_folder_in_the_place_of_a_file(_unfinished("pim", worker, first_runs[0]) / HISTORY):
            with _taking_no_more_runs("test"), running(command, elsewhere, cwd=folder, log=folder / "worker.log"):
                _run_here(server, run)
            first, first_cells = server.ended(run), _cells(worker, run)
        server.post(f"/flow_runs/{run}/set_state", {"state": {"type": "PENDING"}, "force": True})
        _run_here(server, run)
    return Tries(first, first_cells, server.ended(run), _cells(worker, run))


def _run_here(server: PrefectServer, run: str) -> None:
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(UUID(run))
    run_flow(reproduce, flow_run, {**server.get(f"/flow_runs/{run}")["parameters"]}, return_type="state")


def _unfinished(objective: str, worker: Worker, run: FlowRun) -> Path:
    """Return where a pre-training of the grid writes; its images and tokens are those of the run."""
    graph = CHAINS["reproduce"].graph(apply_overrides(preset("reproduce", "demo"), OVERRIDES))
    stage = next(node.stage for node in graph.nodes if node.name == f"pretrain-{objective}")
    made = Workspace(Settings(data_root=worker.data_root)).made()
    for node in graph.nodes:
        if node.stage in stage.takes:
            made.artifacts[node.stage] = read_artifact(worker.made(run, node.kind))
    return made.settings.layout.partial("pretrain", made.recipe(stage).fingerprint)


@contextmanager
def _a_folder_in_the_place_of_a_file(path: Path) -> Iterator[None]:
    path.mkdir(parents=True)
    yield
    path.rmdir()


@contextmanager
def _taking_no_more_runs(worker: str) -> Iterator[None]:
    """Stop a worker from taking runs; those that it has started go on."""
    [process] = [one for one in psutil.Process().children() if one.cmdline()[-2:] == ["--name", worker]]
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def _cells(worker: Worker, run: str) -> dict[str, FlowRun]:
    children = worker.server.post("/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}})
    return {child["parameters"]["cell"]: child for child in children}


def _tasks(worker: Worker, run: FlowRun) -> dict[str, str]:
    """Return the state of each task of a stage."""
    found: list[dict[str, Any]] = worker.server.post(
        "/task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [run["id"]]}}}
    )
    return {task["name"].removesuffix("-demo"): task["state"]["name"] for task in found if "/" not in task["name"]}


def _workers(cells: dict[str, FlowRun]) -> dict[str, str]:
    return {cell: run["labels"]["prefect.worker.name"] for cell, run in cells.items()}


def test_each_cell_is_made_by_a_run_of_its_own_on_any_worker(worker: Worker, tries: Tries) -> None:
    assert _workers(tries.first_cells) == {"mim": "other", "pim": "other"}
    assert _workers(tries.second_cells) == {"mim": "other", "pim": "test"}
    mim = tries.first_cells["mim"]
    assert mim["state"]["type"] == "COMPLETED", mim["state"]
    assert mim["name"].startswith("demo-mim-")
    made = _tasks(worker, mim)
    assert {made.pop("pretrain-mim"), made.pop("evaluate-frozen_features-mim")} == {"Completed"}
    assert set(made.values()) == {"Cached"}
    assert not [name for name in made if "pim" in name or "report" in name]


def test_a_cell_that_fails_keeps_only_what_depends_on_it(worker: Worker, tries: Tries) -> None:
    assert tries.first_cells["pim"]["state"]["type"] == "FAILED"
    said = tries.first["state"]["message"]
    assert tries.first["state"]["type"] == "FAILED"
    assert said.startswith("1 failed, everything else is done. pim, and its evaluations: the flow run demo-pim-"), said
    assert "Is a directory" in said
    found = _tasks(worker, tries.first)
    assert found["evaluate-frozen_features-mim"] == "Cached"
    assert "report" in found


def test_a_second_try_makes_what_failed_again_and_nothing_else(tries: Tries) -> None:
    assert tries.second["state"]["type"] == "COMPLETED", tries.second["state"]
    assert tries.second["state"]["message"].endswith("; built: report")
    first, second = tries.first_cells, tries.second_cells
    assert {cell: run["id"] for cell, run in second.items()} == {cell: run["id"] for cell, run in first.items()}
    assert {cell: run["run_count"] for cell, run in second.items()} == {"mim": 1, "pim": 2}
    assert {run["state"]["type"] for run in second.values()} == {"COMPLETED"}


def test_a_work_pool_with_one_place_has_none_for_cells(worker: Worker) -> None:
    server = worker.server
    deployment = UUID(server.get("/deployments/name/reproduce/demo")["id"])
    server.patch("/work_pools/mapet", {"concurrency_limit": 1})
    try:
        with (
            temporary_settings({PREFECT_API_URL: server.url}),
            pytest.raises(PipelineError, match=r"^cells_as_runs: the work pool mapet has a place for one run"),
        ):
            require_place_beside(deployment)
    finally:
        server.patch("/work_pools/mapet", {"concurrency_limit": None})


def test_cells_of_a_run_without_a_deployment_are_refused(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAPET_DATA_ROOT", str(tmp_path))
    with temporary_settings({PREFECT_API_URL: worker.server.url}):
        state = reproduce(preset("reproduce", "demo"), cells_as_runs=True, return_state=True)
    assert state.message == ("cells_as_runs: cells can be runs of their own in a run of a deployment only; start it so")
