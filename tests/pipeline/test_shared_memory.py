"""Loader workers hand batches over in /dev/shm. Where that is small, a run ends in a sentence, and never waits."""

import subprocess
import sys
from functools import lru_cache

import pytest
import torch

from pipeline.data.batches import load_in_workers
from pipeline.errors import PipelineError
from tests.flows.prefect_server import REPOSITORY

MIB = 1 << 20


def with_shared_memory(mebibytes: int, call: str) -> str:
    """What a call of a function of this module prints where /dev/shm is that large, in a namespace of its own."""
    script = f'mount -t tmpfs -o size={mebibytes}m tmpfs /dev/shm && exec {sys.executable} -c "$1"'
    program = f"from {__name__} import *; print({call})"
    words = ["unshare", "--mount", "sh", "-c", script, "sh", program]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@lru_cache
def may_mount() -> bool:
    words = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_mount = pytest.mark.skipif(not may_mount(), reason="this user may not mount in a namespace of his own")


def load(mebibytes: int) -> str:
    """Loads ten batches of that size."""

    def batch(_: int) -> torch.Tensor:
        return torch.ones(mebibytes * MIB, dtype=torch.uint8)

    try:
        return f"{sum(1 for _ in load_in_workers(batch, range(10), settings, loading_ahead(1, settings)))} batches"
    except PipelineError as error:
        return str(error)


@needs_mount
@pytest.mark.parametrize(("room", "batch"), [(1, 2), (12, 100), (200, 150)])
def test_a_batch_that_does_not_fit_ends_the_run_in_one_sentence(room: int, batch: int) -> None:
    said = with_shared_memory(room, f"load({batch})")
    assert said.startswith("the processes that load images hand them over in /dev/shm, which has too little room")
    assert f"of {room} MiB" in said
    assert "docker run --shm-size=8g" in said
    assert "\n" not in said


@needs_mount
def test_batches_that_fit_arrive() -> None:
    assert with_shared_memory(12, "load(1)") == "10 batches"
