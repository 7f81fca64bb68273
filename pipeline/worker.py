"""The processes that train together. Started by `pipeline.training.launch`, not by hand.

python -m pipeline.worker torchrun PARENT ARGUMENTS...    torchrun, which runs the line below once for each worker
python -m pipeline.worker DEVICE ATTENTION FOLDER PARENT  a worker; FOLDER is "-" on other nodes than the first

PARENT is the process number of the one that starts this one, with which this one ends.
"""

import ctypes
import faulthandler
import logging
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> NoReturn:
    """Exits with 1 after an error that the first process has passed on to the stage."""
    faulthandler.enable()  # a crash of native code says where
    if arguments[0] == "torchrun":
        _, parent, *rest = arguments
        _end_with(int(parent))
        sys.exit(_torchrun([*rest, str(os.getpid())]))
    device, attention, folder, parent = arguments
    _end_with(int(parent))
    _leave(_train(device, attention, None if folder == "-" else Path(folder)))


def _torchrun(arguments: Sequence[str]) -> int:
    """Without its own account of a worker that failed: the worker has said why, to the user or as a traceback."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun(list(arguments))
    except ChildFailedError:
        return 1
    return 0


def _end_with(parent: int) -> None:
    """SIGTERM when the parent is gone, even by SIGKILL: time for a last checkpoint, and no orphan on the GPU."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # gone before the kernel was asked
        sys.exit(1)


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


def _train(device: str, attention: Any, folder: Path | None) -> int:
    from pipeline.console import log_to_stderr
    from pipeline.data.batches import lost_workers_explained
    from pipeline.devices import attend_with
    from pipeline.errors import USER_ERRORS
    from pipeline.stops import remembered_stops
    from pipeline.training.launch import OUTCOME, REPORT, WORK, Work
    from pipeline.training.processes import joined_processes
    from pipeline.training.reporting import FileReporter
    from storage.files import write_json

    try:
        with remembered_stops(), joined_processes(device) as processes:
            attend_with(attention, device)
            if processes.is_first:
                log_to_stderr()
            # Written by the process that started this one, in a folder that is theirs alone.
            own = pickle.loads((folder / WORK).read_bytes()) if folder else None  # nosec B301
            work: Work = processes.from_first(own)
            folder = processes.from_first(folder)
            with lost_workers_explained():
                notes = work(processes, FileReporter(folder / REPORT if processes.is_first else Path("/dev/null")))
            if processes.is_first:
                write_json(folder / OUTCOME, {"notes": dict(notes)})
    except USER_ERRORS as error:
        assert folder is not None  # nothing before it raises these
        write_json(folder / OUTCOME, {"error": str(error)})  # whole, though several may fail at once
        return 1
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
