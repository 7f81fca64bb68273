"""The deployment `reproduce/demo` on a real server and worker, with evaluations that fail."""

import os
from pathlib import Path

import pytest

from tests.flows.conftest import Worker
from tests.flows.prefect_server import FlowRun
from tests.flows.small_build import SMALL_OVERRIDES

pytestmark = pytest.mark.servers

OVERRIDES = (
    'grid.objectives=["mim","pim"]',
    "grid.tokens_only=[]",
    "grid.scratch=false",
    'evaluate.protocols=["tokens_as_input","frozen_features"]',
    "frozen_features.training.epochs=1",
    "frozen_features.training.batch_size=8",
    "frozen_features.training.peak_learning_rate=9e37",  # possible, and no weight survives it
    "grid.seeds=[5]",  # of no other test on this worker: these pre-trainings are not found
    "training.epochs=1",
    "training.batch_size=16",
    "tokens_as_input.training.epochs=1",
    "tokens_as_input.training.batch_size=16",
)


@pytest.fixture(scope="module")
def begun_before(worker: Worker, first_runs: tuple[FlowRun, FlowRun]) -> set[Path]:
    """Return what the runs of other tests have begun and not ended."""
    return set(worker.data_root.glob("evaluate/*.partial"))


@pytest.fixture(scope="module")
def run(worker: Worker, begun_before: set[Path]) -> FlowRun:
    started = worker.server.start_with("reproduce/demo", overrides=[*SMALL_OVERRIDES, *OVERRIDES])
    return worker.server.ended(started)


def test_the_run_fails_with_the_sentences_of_what_failed(run: FlowRun) -> None:
    assert run["state"]["type"] == "FAILED"
    said = run["state"]["message"]
    assert said.startswith("2 failed, everything else is done. frozen_features of mim: step "), said
    assert "frozen_features of pim: step " in said
    assert "is not finite" in said


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core makes one stage at a time")
def test_pretrainings_are_made_at_once(worker: Worker, run: FlowRun) -> None:
    of_run = {"task_runs": {"flow_run_id": {"any_": [run["id"]]}}}
    tasks = {task["name"]: task for task in worker.server.post("/task_runs/filter", of_run)}
    mim, pim = tasks["pretrain-mim-demo"], tasks["pretrain-pim-demo"]
    assert max(mim["start_time"], pim["start_time"]) < min(mim["end_time"], pim["end_time"])
    upstream = {item["id"] for item in pim["task_inputs"]["wait_for"]}
    taken = ("make_demo_images-demo", "index_images-demo", "tokenize_images-demo")
    assert upstream == {tasks[name]["id"] for name in taken}


def test_what_does_not_need_them_is_done_and_reported(worker: Worker, run: FlowRun, begun_before: set[Path]) -> None:
    compared = (worker.made(run, "report") / "report.md").read_text()
    assert "Tokens as input" in compared or "tokens as the input" in compared
    assert "PIM" in compared
    begun = set(worker.data_root.glob("evaluate/*.partial")) - begun_before
    assert len(begun) == 2, "what failed is begun, and nothing else"
