"""The processes that train together. Started by `pipeline.training.launch`, not by hand.

python -m pipeline.training.worker torchrun PARENT ARGUMENTS...    torchrun, which runs the line below once a worker
python -m pipeline.training.worker DEVICE ATTENTION FOLDER PARENT  a worker; FOLDER is its node's own

PARENT is the process number of the one that starts this one, with which this one ends. A worker that fails ends all:
torchrun sees it go, and ends the others, which mostly wait for it by then.
"""

import faulthandler
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline.engine.stops import remembered_stops, stop_when_parent_dies

_SECONDS_TO_BE_ENDED = 3.0  # of a worker that may have lost another; torchrun looks ten times a second
_SECONDS_TO_END = 10  # of the workers that are left when one has failed


def main(arguments: Sequence[str]) -> NoReturn:
    """Exits with 1 after an error that the first process has passed on to the stage."""
    faulthandler.enable()  # a crash of native code says where
    if arguments[0] == "torchrun":
        _, parent, *rest = arguments
        stop_when_parent_dies(int(parent))
        sys.exit(_torchrun([*rest, str(os.getpid())]))
    device, attention, folder, parent = arguments
    stop_when_parent_dies(int(parent))
    _leave(_train(device, attention, Path(folder)))


def _torchrun(arguments: Sequence[str]) -> int:
    """Run torchrun without its own account of a worker that failed, which has said why; 128 + the signal if one was
    killed."""
    from torch.distributed.elastic.multiprocessing import PContext
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    close = PContext.close

    def close_soon(workers: PContext, death_sig: signal.Signals | None = None, timeout: int = _SECONDS_TO_END) -> None:
        """Close them soon, not after half a minute, which is how long torchrun waits for workers that do not hear its
        SIGTERM. On a GPU they hold it back until the end of their step, which waits in NCCL for the worker that is
        gone."""
        close(workers, death_sig, timeout)

    PContext.close = close_soon  # type: ignore[method-assign, assignment]
    try:
        torchrun(list(arguments))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    return 0


def _leave(code: int) -> NoReturn:
    """Exit without the interpreter's own ending, in which a finished training could still die.

    Threads of torch's gloo outlive the process group wherever something still holds it, such as a
    DistributedDataParallel, and may have yet to let go of the last collective's tensors. The interpreter ends a thread
    that asks for it by then, and C++ takes that for an exception nobody caught: "terminate called without an active
    exception", SIGABRT.
    """
    for loader in multiprocessing.active_children():
        loader.terminate()
        loader.join()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _train(device: str, attention: Any, folder: Path) -> int:
    from pipeline.engine.computing import computing
    from pipeline.engine.devices import attend_with
    from pipeline.engine.errors import USER_ERRORS
    from pipeline.engine.logs import log_to_stderr
    from pipeline.engine.processes import joined_processes
    from pipeline.training.launch import OUTCOME, REPORT, WORK, Work
    from pipeline.training.reporting import FileReporter
    from storage.files import write_json

    try:
        with remembered_stops(), computing("training", device), joined_processes(device) as processes:
            attend_with(attention, device)
            if processes.is_first:
                log_to_stderr()
            # Written by the process that started this one, in a folder that is theirs alone.
            own = pickle.loads((folder / WORK).read_bytes()) if processes.is_first else None  # nosec B301
            work: Work = processes.from_first(own)
            notes = work(processes, FileReporter(folder / REPORT if processes.is_first else Path("/dev/null")))
            if processes.is_first:
                write_json(folder / OUTCOME, {"notes": dict(notes)})
    except USER_ERRORS as error:
        write_json(folder / OUTCOME, {"error": str(error)})  # whole, though several may fail at once
        return 1
    except OSError as error:
        write_json(folder / OUTCOME, {"system": [error.errno, error.strerror or str(error), error.filename]})
        return 1
    except Exception as error:
        # That another worker is gone is an error here too. Then torchrun ends this one before it can say so.
        time.sleep(_SECONDS_TO_BE_ENDED)
        last = traceback.format_exception_only(error)[-1].strip()
        write_json(folder / OUTCOME, {"bug": last, "traceback": traceback.format_exc()})
        return 1
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
