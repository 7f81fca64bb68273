"""`python -m benchmarks.gpu_check.step MODULE DEVICE FILE [quick]`: one step, in the process of this command.

Each check is on the disk when it is known: what a step found before it hung is not lost.
"""

import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from benchmarks.gpu_check.checks import Check, Setup


def run_step(module: str, setup: Setup, results: Path) -> None:
    """All attempts of a step, one after the other, whatever becomes of the others."""

    def record(check: Check) -> None:
        with results.open("a") as file:
            file.write(json.dumps(asdict(check)) + "\n")

    try:
        attempts = import_module(module).attempts(setup)
    except Exception as error:
        record(_of_error("", error))
        return
    for name, work in attempts:
        print(f"--- {name}", flush=True)
        try:
            for check in work():
                record(check)
        except Exception as error:
            record(_of_error(name, error))


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
    module, device, results, *quick = words
    run_step(module, Setup(device, quick=bool(quick)), Path(results))


if __name__ == "__main__":
    main(sys.argv[1:])
