"""A function of a test in a process that believes in GPUs (that compute nothing)."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

RUN = Path(__file__).with_name("run")

needs_cuda_build = pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")


def with_gpus(
    function: Callable[..., Any], *arguments: Any, gpus: int = 2, gib: float = 79.2, folder: Path
) -> tuple[Any, str]:
    """Return what a function of a module returns there, and what it says on stderr.

    Args:
        gib: memory of each GPU.
        folder: where the library that stands for the GPUs is built.
    """
    with TemporaryDirectory() as place:
        files = {name: str(Path(place) / name) for name in ("out", "err", "answer")}
        call = {
            "module": function.__module__,
            "function": function.__name__,
            "arguments": arguments,
            "environment": {**os.environ, "NULL_GPUS": str(gpus), "NULL_GIB": str(gib)},
        }
        server = _server(folder)
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(f"{json.dumps(call | files)}\n")
        server.stdin.flush()
        code, said = server.stdout.readline().strip(), Path(files["err"]).read_text()
        assert code == "0", said
        return json.loads(Path(files["answer"]).read_text()), said


@lru_cache(maxsize=1)
def _server(folder: Path) -> subprocess.Popen[str]:
    """Start what forks such processes; it ends with the one that asks."""
    return subprocess.Popen(
        [RUN, sys.executable, "-m", "tests.null_gpu.server"],
        env={**os.environ, "NULL_GPU_BUILD": str(folder / "build")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
