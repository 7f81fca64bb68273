"""Several processes that want the same at once, and one of them dies; several jobs of one run."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.engine.mlflow_tracker import tracking_uri
from pipeline.engine.settings import Settings
from storage.artifact import RECORD
from tests.commands import Said, mapet
from tests.faults.chain import SMALL_CHAIN, Expected, wrong_results
from tests.faults.kills import require_end, start_chain, wait_until_built


def test_two_chains_in_one_data_root_build_everything_once(expected: Expected, tmp_path: Path) -> None:
    root = tmp_path / "data"
    processes = [start_chain(root) for _ in range(2)]
    for process in processes:
        process.join()
        require_end(process, root, stopped=False)
    log = root.with_name("data.log").read_text()
    assert "Error" not in log, log
    assert wrong_results(root, expected, whole=True) == []
    made = {path: path.stat().st_mtime_ns for path in root.glob(f"*/*/{RECORD}")}
    again = start_chain(root)
    again.join()
    assert {path: path.stat().st_mtime_ns for path in root.glob(f"*/*/{RECORD}")} == made


@pytest.mark.parametrize("stage", ["extract_features", "pretrain"])
def test_the_lock_of_a_builder_that_is_killed_goes_to_the_one_that_waits(
    stage: str, expected: Expected, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    first = start_chain(root)
    assert wait_until_built(root, stage, first)
    os.kill(first.pid or 0, signal.SIGSTOP)  # it holds the lock and does nothing, as a process that swaps
    second = start_chain(root)
    time.sleep(1.5)  # enough to find what is there and to come to the lock
    assert second.is_alive(), "it did not wait for the lock"
    os.kill(first.pid or 0, signal.SIGKILL)
    first.join()
    second.join()
    require_end(second, root, stopped=False)
    assert wrong_results(root, expected, whole=True) == []


@pytest.fixture(scope="module")
def in_jobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """The chain by a user's command, whose settings are the usual ones: several jobs where there are several cores."""
    root = tmp_path_factory.mktemp("jobs") / "data"
    return root, mapet(root.parent / "said", "reproduce", "demo", *SMALL_CHAIN, f"settings.data_root={root}")


def test_several_jobs_make_the_same_bytes_as_one(in_jobs: tuple[Path, Said], expected: Expected) -> None:
    root, said = in_jobs
    assert said.code == 0, said.err
    jobs = min(len(os.sched_getaffinity(0)), 4)
    assert (f"{jobs} jobs at once (settings.jobs: one per CPU core" in said.err) == (jobs > 1)
    assert wrong_results(root, expected, whole=True) == []
    table = said.out.partition(" s of work went\n")[2].partition("\n\n")[0]
    assert re.search(r"^  tokenize_images +2 x +\d+\.\d s +\d+%  encoding \d+\.\d s$", table, re.M), said.out
    assert len(table.splitlines()) == 12, "evaluations by their protocols"


def test_jobs_are_tracked_as_stages_of_one_process_are(in_jobs: tuple[Path, Said]) -> None:
    settings = Settings(data_root=in_jobs[0])
    client = MlflowClient(tracking_uri=tracking_uri(settings))
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    [whole] = [run for run in runs if run.info.run_name.startswith("reproduce demo")]
    assert {run.info.status for run in runs} == {"FINISHED"}
    children = {run.info.run_id for run in runs if run.data.tags.get("mlflow.parentRunId") == whole.info.run_id}
    compared = [run for run in runs if run.data.tags.get("part_of_run") in children]
    assert (len(children), len(compared), len(runs)) == (13, 5, 1 + 13 + 5)
    [trained] = [run for run in compared if run.info.run_name.startswith("pretrain")]
    assert {"token_loss", "eval/frozen_features/knn_top1", "eval/fine_tune/top1"} <= trained.data.metrics.keys()
    assert "pretrain-mapet/token_accuracy" in whole.data.metrics
