"""The deployments `pretrain/demo` and `evaluate/demo` on a real server and worker: trained once, then found."""

from pathlib import Path

import pytest

from tests.flows.conftest import Worker
from tests.flows.prefect_server import FlowRun
from tests.flows.small_build import mlflow_runs, states

pytestmark = pytest.mark.servers


def test_a_pretraining_is_trained_once_and_found_by_the_flow_that_evaluates_it(
    worker: Worker, pretrained: FlowRun, evaluated: FlowRun
) -> None:
    assert [run["state"]["type"] for run in (pretrained, evaluated)] == ["COMPLETED", "COMPLETED"]
    first, second = (states(worker.server.stages_of(run)) for run in (pretrained, evaluated))
    assert (first["pretrain"], second["pretrain"]) == ("Completed", "Cached")
    assert "built: pretrain" in pretrained["state"]["message"]


def test_the_task_is_named_after_its_objective(worker: Worker, pretrained: FlowRun) -> None:
    names = [task["name"] for task in worker.server.stages_of(pretrained).values()]
    assert "pretrain-pim-demo" in names


def test_the_backbone_lies_in_the_folder_of_the_worker_and_mlflow_knows_it(
    worker: Worker, pretrained: FlowRun, evaluated: FlowRun
) -> None:
    folder = Path(worker.server.stages_of(pretrained)["pretrain"]["state"]["message"].rpartition(": ")[2])
    assert folder.parent == worker.data_root / "pretrain"
    assert {"config.json", "model.safetensors", "history.jsonl"} <= {path.name for path in folder.iterdir()}
    tracked = mlflow_runs(worker.data_root)
    trained = [run for run in tracked if run.tags.get("fingerprint") == folder.name and "cached" in run.tags]
    assert sorted(run.tags["cached"] for run in trained) == ["false", "true"]
    of_this = [run for run in tracked if run.tags.get("fingerprint") == folder.name]
    compared = [run for run in of_this if "cached" not in run.tags]
    assert [(run.name, run.status) for run in compared] == [
        ("pretrain pim vit_demo, kclip, 2 epochs, seed 0", "FINISHED")
    ]
