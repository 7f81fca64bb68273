"""Several processes that want the same at once, and one of them dies."""

import os
import signal
import time
from pathlib import Path

import pytest

from storage.artifact import RECORD
from tests.faults.chain import Expected, wrong_results
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
