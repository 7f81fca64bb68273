"""The deployments `evaluate/demo` and `kclip-build/fit_vqkd` on a real server and worker, made small by overrides."""

import json

import pytest

from tests.flows.conftest import Worker
from tests.flows.prefect_server import FlowRun
from tests.flows.small_build import SMALL_OVERRIDES, states

pytestmark = [pytest.mark.servers, pytest.mark.usefixtures("first_runs")]

VQKD = (
    "images.kind=demo",
    "fit_vqkd.teacher.model=demo",
    "fit_vqkd.teacher.dilate_last_stage=true",
    "fit_vqkd.teacher.precision=fp32",
    "fit_vqkd.network.image_size=64",
    "fit_vqkd.network.width=64",
    "fit_vqkd.network.depth=1",
    "fit_vqkd.network.decoder_depth=1",
    "fit_vqkd.network.vocabulary=16",
    "fit_vqkd.network.code_width=8",
    "fit_vqkd.training.epochs=1",
    "fit_vqkd.training.warmup_epochs=0",
    "fit_vqkd.training.batch_size=16",
    "fit_vqkd.training.precision=fp32",
    "vqkd.precision=fp32",
)


def test_what_is_evaluated_is_found_and_scored_by_every_protocol(worker: Worker, evaluated: FlowRun) -> None:
    assert evaluated["state"]["type"] == "COMPLETED", evaluated["state"]
    stages = states(worker.server.stages_of(evaluated))
    assert stages["evaluate"] == "Completed"
    assert set(stages.values()) == {"Cached", "Completed"}
    records = [json.loads(path.read_text()) for path in worker.data_root.glob("evaluate/*/artifact.json")]
    assert {"knn_top1", "top1"} <= {name for record in records for name in record["summary"]}


def test_a_vqkd_is_trained_and_makes_the_tokens(worker: Worker) -> None:
    run = worker.server.ended(worker.server.start_with("kclip-build/fit_vqkd", overrides=[*SMALL_OVERRIDES, *VQKD]))
    assert run["state"]["type"] == "COMPLETED", run["state"]
    stages = states(worker.server.stages_of(run))
    assert (stages["fit_vqkd"], stages["tokenize_images"]) == ("Completed", "Completed")
    assert list(worker.data_root.glob("fit_vqkd/*/vqkd.pth"))
