"""Calls functions in processes that believe in GPUs, forked from this one, which imports what they need only once.

Each line of standard input is a call, as `tests.null_gpu.gpus` writes it; each line of standard output its exit code.
This process itself asks CUDA nothing: a fork of one that did could use no GPU.
"""

import gc
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

_SECONDS = 240  # that a call may take


def main() -> None:
    for line in sys.stdin:
        call = json.loads(line)
        try:
            function = getattr(importlib.import_module(call["module"]), call["function"])
        except Exception:
            Path(call["err"]).write_text(traceback.format_exc())
            code = 1
        else:
            gc.collect()
            gc.freeze()
            _, status = os.waitpid(_forked(function, call), 0)
            code = os.waitstatus_to_exitcode(status)
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()


def _forked(function: Any, call: dict[str, Any]) -> int:
    """Return the number of the process that makes the call."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(call[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.alarm(_SECONDS)
        ours = {name: os.environ[name] for name in ("LD_PRELOAD", "LD_LIBRARY_PATH")}  # which `run` has set
        os.environ.clear()
        os.environ.update({**call["environment"], **ours})
        Path(call["answer"]).write_text(json.dumps(function(*call["arguments"])))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
