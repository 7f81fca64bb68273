"""The deployment `pretrain/demo` on a real server and worker: trained once, then found."""

from pathlib import Path

import pytest

from tests.flows.conftest import Worker
from tests.flows.prefect_server import FlowRun
from tests.flows.small_build import SMALL_OVERRIDES, mlflow_runs, states

pytestmark = pytest.mark.servers

OVERRIDES = ("training.epochs=2", "training.batch_size=16", "pretrain.objective=pim")


@pytest.fixture(scope="module")
def runs(worker: Worker, first_runs: tuple[FlowRun, FlowRun]) -> list[FlowRun]:
    """The same run twice, the second time by command, on the images and tokens of the other flow's tests."""
    overrides = [*SMALL_OVERRIDES, *OVERRIDES]
    first = worker.server.ended(worker.server.start_with("pretrain/demo", overrides=overrides))
    return [first, worker.server.run_by_command("pretrain/demo", overrides=overrides)]


def test_both_runs_complete_and_the_second_trains_nothing(worker: Worker, runs: list[FlowRun]) -> None:
    assert [run["state"]["type"] for run in runs] == ["COMPLETED", "COMPLETED"], runs
    first, second = (states(worker.server.stages_of(run)) for run in runs)
    assert first["pretrain"] == "Completed"
    assert set(second.values()) == {"Cached"}
    assert "nothing, every stage was cached" in runs[1]["state"]["message"]


def test_the_task_is_named_after_its_objective(worker: Worker, runs: list[FlowRun]) -> None:
    names = [task["name"] for task in worker.server.stages_of(runs[0]).values()]
    assert "pretrain-pim-demo" in names


def test_the_backbone_lies_in_the_folder_of_the_worker_and_mlflow_knows_it(worker: Worker, runs: list[FlowRun]) -> None:
    folder = Path(worker.server.stages_of(runs[0])["pretrain"]["state"]["message"].rpartition(": ")[2])
    assert folder.parent == worker.data_root / "pretrain"
    assert {"config.json", "model.safetensors", "history.jsonl"} <= {path.name for path in folder.iterdir()}
    tracked = mlflow_runs(worker.data_root)
    trained = [run for run in tracked if run.tags.get("fingerprint") == folder.name and "cached" in run.tags]
    assert sorted(run.tags["cached"] for run in trained) == ["false", "true"]
    compared = [run for run in tracked if run.tags.get("objective") == "pim" and "cached" not in run.tags]
    assert [(run.name, run.status) for run in compared] == [
        ("pretrain pim vit_demo, kclip, 2 epochs, seed 0", "FINISHED")
    ]
