"""The processes that train together. Started by `pipeline.training.launch`, not by hand.

python -m pipeline.worker torchrun ARGUMENTS...    torchrun, which ends when the process that started it does
python -m pipeline.worker DEVICE FOLDER            one of torchrun's workers; FOLDER is "-" on other nodes
"""

import ctypes
import logging
import pickle
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> None:
    """Exits with 1 after an error that the first process has passed on to the stage."""
    _end_with_parent()
    if arguments[0] == "torchrun":
        sys.exit(_torchrun(arguments[1:]))
    else:
        device, folder = arguments
        sys.exit(_train(device, None if folder == "-" else Path(folder)))


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


def _end_with_parent() -> None:
    """SIGTERM when the parent is gone, even by SIGKILL: time for a last checkpoint, and no orphan on the GPU."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _train(device: str, folder: Path | None) -> int:
    from pipeline.console import log_to_stderr
    from pipeline.errors import USER_ERRORS
    from pipeline.training.launch import OUTCOME, REPORT, WORK, Work
    from pipeline.training.processes import joined_processes
    from pipeline.training.reporting import FileReporter
    from storage.files import write_json

    with joined_processes(device) as processes:
        if processes.is_first:
            log_to_stderr()
        # Written by the process that started this one, in a folder that is theirs alone.
        own = pickle.loads((folder / WORK).read_bytes()) if folder else None  # nosec B301
        work: Work = processes.from_first(own)
        folder = processes.from_first(folder)
        outcome = folder / OUTCOME
        try:
            notes = work(processes, FileReporter(folder / REPORT if processes.is_first else Path("/dev/null")))
        except USER_ERRORS as error:
            write_json(outcome, {"error": str(error)})  # whole, though several may fail at once
            return 1
        if processes.is_first:
            write_json(outcome, {"notes": dict(notes)})
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
