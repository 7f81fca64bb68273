"""A /dev/shm of any size, for what a process does there."""

import ctypes
import os
import subprocess
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.forked import call

TOO_LITTLE = "the processes that load images hand them over in /dev/shm, which has too little room"
_NAMESPACE, _RECURSIVE_PRIVATE = 0x00020000, 0x4000 | 0x40000  # CLONE_NEWNS; MS_REC | MS_PRIVATE


def with_shared_memory(mebibytes: int, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Return what a function of a module returns where /dev/shm is that large, in a namespace of its own."""
    with TemporaryDirectory() as folder:
        return call(Path(folder), _in_room, mebibytes, partial(function, *arguments, **named), seconds=240)


def _in_room(mebibytes: int, function: Callable[[], Any]) -> Any:
    system = ctypes.CDLL(None, use_errno=True)
    if system.unshare(_NAMESPACE) or system.mount(b"none", b"/", None, _RECURSIVE_PRIVATE, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", "/dev/shm"], check=True)
    return function()


@lru_cache
def may_mount() -> bool:
    words = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_mount = pytest.mark.skipif(not may_mount(), reason="this user may not mount in a namespace of his own")
