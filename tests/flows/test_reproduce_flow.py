"""The deployment `reproduce/demo` on a real server and worker, with a cell that fails."""

import pytest

from tests.flows.conftest import Worker
from tests.flows.prefect_server import FlowRun
from tests.flows.test_kclip_build_flow import SMALL_OVERRIDES

pytestmark = pytest.mark.servers

OVERRIDES = (
    'grid.objectives=["mim","pim"]',
    "grid.tokens_only=[]",
    "grid.scratch=false",
    'evaluate.protocols=["tokens_as_input"]',
    "objectives.mim.masked=17",  # of 16 patches
    "training.epochs=1",
    "training.batch_size=16",
    "tokens_as_input.training.epochs=1",
    "tokens_as_input.training.batch_size=16",
)


@pytest.fixture(scope="module")
def run(worker: Worker) -> FlowRun:
    started = worker.server.start_with("reproduce/demo", overrides=[*SMALL_OVERRIDES, *OVERRIDES])
    return worker.server.ended(started)


def test_the_run_fails_with_the_sentence_of_the_cell(run: FlowRun) -> None:
    assert run["state"]["type"] == "FAILED"
    said = run["state"]["message"]
    assert "1 failed, everything else is done. mim, and its evaluations: 17 predicted patches of 16" in said


def test_what_does_not_need_the_cell_is_done_and_reported(worker: Worker, run: FlowRun) -> None:
    reports = [path.read_text() for path in worker.data_root.glob("report/*/report.md")]
    [compared] = [text for text in reports if "Tokens as input" in text or "tokens as the input" in text]
    assert "PIM" in compared
    assert not list(worker.data_root.glob("evaluate/*.partial"))
