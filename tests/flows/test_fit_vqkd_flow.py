"""The deployment `kclip-build/fit_vqkd` on a real server and worker: a small VQ-KD, then its tokens."""

import pytest

from tests.flows.conftest import Worker
from tests.flows.prefect_server import FlowRun
from tests.flows.test_kclip_build_flow import SMALL_OVERRIDES, states

pytestmark = pytest.mark.servers

OVERRIDES = (
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


@pytest.fixture(scope="module")
def run(worker: Worker) -> FlowRun:
    started = worker.server.start_with("kclip-build/fit_vqkd", overrides=[*SMALL_OVERRIDES, *OVERRIDES])
    return worker.server.ended(started)


def test_a_vqkd_is_trained_and_makes_the_tokens(worker: Worker, run: FlowRun) -> None:
    assert run["state"]["type"] == "COMPLETED", run["state"]
    stages = states(worker.server.stages_of(run))
    assert (stages["fit_vqkd"], stages["tokenize_images"]) == ("Completed", "Completed")
    assert list(worker.data_root.glob("fit_vqkd/*/vqkd.pth"))
