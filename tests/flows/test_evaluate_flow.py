"""The deployment `evaluate/demo` on a real server and worker, made small by overrides."""

import json

import pytest

from tests.flows.conftest import Worker
from tests.flows.prefect_server import FlowRun
from tests.flows.test_kclip_build_flow import SMALL_OVERRIDES, states

pytestmark = pytest.mark.servers

OVERRIDES = (
    "training.epochs=1",
    "training.batch_size=16",
    "pretrain.objective=mim",  # not that of the other flow's tests
    'evaluate.protocols=["frozen_features","tokens_as_input"]',
    "frozen_features.training.epochs=1",
    "frozen_features.training.batch_size=16",
    "frozen_features.training.validation_epochs=1",
    "frozen_features.neighbours=5",
    "tokens_as_input.training.epochs=1",
    "tokens_as_input.training.batch_size=16",
    "tokens_as_input.training.validation_epochs=1",
)


@pytest.fixture(scope="module")
def run(worker: Worker) -> FlowRun:
    overrides = [*SMALL_OVERRIDES, *OVERRIDES]
    return worker.server.ended(worker.server.start_with("evaluate/demo", overrides=overrides))


def test_what_it_evaluates_is_trained_and_scored_by_every_protocol(worker: Worker, run: FlowRun) -> None:
    assert run["state"]["type"] == "COMPLETED", run["state"]
    assert states(worker.server.stages_of(run))["pretrain"] == "Completed"
    records = [json.loads(path.read_text()) for path in worker.data_root.glob("evaluate/*/artifact.json")]
    assert {"knn_top1", "top1"} <= {name for record in records for name in record["summary"]}
