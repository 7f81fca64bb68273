"""A /dev/shm of any size, for what a process does there."""

import subprocess
import sys
from functools import lru_cache

import pytest

from tests.flows.prefect_server import REPOSITORY

TOO_LITTLE = "the processes that load images hand them over in /dev/shm, which has too little room"


def with_shared_memory(mebibytes: int, call: str, module: str) -> str:
    """Return what a call of a function of the module prints where /dev/shm is that large, in a namespace of its own."""
    script = f'mount -t tmpfs -o size={mebibytes}m tmpfs /dev/shm && exec {sys.executable} -c "$1"'
    program = f"from {module} import *; print({call})"
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
