"""A function of a test in a process that believes in GPUs (that compute nothing)."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
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
    call = f"from {function.__module__} import *; print(json.dumps({function.__name__}(*{arguments!r})))"
    done = subprocess.run(
        [RUN, sys.executable, "-c", f"import json; {call}"],
        env={**os.environ, "NULL_GPUS": str(gpus), "NULL_GIB": str(gib), "NULL_GPU_BUILD": str(folder / "build")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr
