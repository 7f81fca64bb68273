"""`python -m benchmarks.gpu_check.step MODULE DEVICE FILE FIRST [quick]`: one step, in the process of this command.

Each check is on the disk when it is known, and each attempt when it begins: what a step found before it died is not
lost, and another process can go on after the attempt of which it died.
"""

import gc
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from itertools import islice
from pathlib import Path

from benchmarks.gpu_check.checks import Check, Setup

UNUSABLE = 75  # exit code of a process whose failure is written down, and whose device answers no more
BEGINS = "begins"  # the only field of the line of an attempt


def run_step(module: str, setup: Setup, results: Path, *, first: int) -> None:
    """Run the attempts of a step from number `first` on, one after the other, whatever becomes of the others."""

    def write(line: Mapping[str, object]) -> None:
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")

    try:
        attempts = import_module(module).attempts(setup)
    except Exception as error:
        write(asdict(_of_error("", error)))
        return
    for name, work in islice(attempts, first, None):
        print(f"--- {name}", flush=True)
        write({BEGINS: name})
        try:
            for check in work():
                write(asdict(check))
        except Exception as error:
            write(asdict(_of_error(name, error)))
        if setup.is_cuda:
            _clear_device()


def _clear_device() -> None:
    """Leave nothing of an attempt to the next one: no memory, and no error: after an illegal access every call of CUDA
    fails in this process, and would look like another fault."""
    import torch

    gc.collect()  # networks refer to themselves
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception as error:
        print(f"CUDA cannot be used in this process any more: {error}", flush=True)
        os._exit(UNUSABLE)


def _of_error(name: str, error: BaseException) -> Check:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError):
            return Check(name, "left out", note=f"needs {cause.name}, which is not installed")
        cause = cause.__cause__
    traceback.print_exception(error)
    words = str(error).strip().splitlines() or [""]
    return Check(name, "failed", note=f"{type(error).__name__}: {words[0][:300]}")


def main(words: Sequence[str]) -> None:
    module, device, results, first, *quick = words
    run_step(module, Setup(device, quick=bool(quick)), Path(results), first=int(first))


if __name__ == "__main__":
    main(sys.argv[1:])
