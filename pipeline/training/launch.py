"""Training in this process, or in several that torchrun starts on this machine and on others.

The process that runs the stage does not train then: it starts torchrun, repeats what the first worker reports to the
tracker (which no worker has to import), and ends when the workers have ended. Whatever happens to it, they do not
outlive it (`pipeline.training.worker`).
"""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from pipeline.encoding.networks import release_networks
from pipeline.engine.devices import require_gpus, say_device, say_idle_gpus
from pipeline.engine.errors import PipelineError
from pipeline.engine.processes import Processes
from pipeline.engine.settings import Settings
from pipeline.engine.stops import raise_if_stopped
from pipeline.engine.threads import threads_of_each
from pipeline.engine.tracker import TrackedRun
from pipeline.training.loop import Reporter
from pipeline.training.reporting import Relay, TrackingReporter

Work = Callable[[Processes, Reporter], Mapping[str, Any]]
"""One process's part of a training run; returns notes about it. Pickled when there are several processes: a function of
a module, or a `functools.partial` of one."""

WORK, REPORT, OUTCOME = "work.pickle", "report.jsonl", "outcome.json"
_SECONDS_BETWEEN_LOOKS = 0.3
_SECONDS_TO_CHECKPOINT = 60
_KEPT = "what is done is kept: run the same command again to go on"
logger = logging.getLogger("mapet.stages")


def train_together(work: Work, settings: Settings, run: TrackedRun, *, what: str) -> dict[str, Any]:
    """Run `work` in every process that the settings ask for; returns the first one's notes.

    Raises:
        PipelineError: what a process raised, or that one of them died; fewer GPUs than processes.
        OSError: what a process raised.
    """
    device = settings.torch_device()
    require_gpus(device, settings.processes)
    say_device(settings.device)
    release_networks()
    with TrackingReporter(run, what) as reporter:
        if settings.processes * settings.nodes == 1:
            say_idle_gpus(device, f"settings.processes={torch.cuda.device_count()}")
            return dict(work(Processes(torch.device(device)), reporter))
        with tempfile.TemporaryDirectory(prefix="mapet-training-") as folder:
            return _with_torchrun(work, settings, reporter, Path(folder))


def join_training(settings: Settings) -> None:
    """Train as a node that is not the first: what and how, the first node says.

    Raises:
        PipelineError, OSError: as `train_together`; of what fails on another node, only that node tells.
    """
    require_gpus(settings.torch_device(), settings.processes)
    with tempfile.TemporaryDirectory(prefix="mapet-training-") as folder:
        command, environment = _torchrun(settings, folder), _environment(settings)
        code = subprocess.run(command, start_new_session=True, env=environment, check=False).returncode
        if code:
            where = f" on node {settings.node_rank}, perhaps for what another one says"
            _raise_failure(_read_outcome(Path(folder)), code, where)


def _with_torchrun(work: Work, settings: Settings, reporter: TrackingReporter, folder: Path) -> dict[str, Any]:
    (folder / WORK).write_bytes(pickle.dumps(work))
    relay = Relay(folder / REPORT, reporter)
    # In a session of its own: Ctrl-C in a terminal reaches this process alone, which passes it on, once.
    torchrun = subprocess.Popen(_torchrun(settings, str(folder)), start_new_session=True, env=_environment(settings))
    try:
        while _is_running(torchrun):
            relay.repeat()
            raise_if_stopped()
    finally:
        if torchrun.poll() is None:
            torchrun.terminate()
            try:
                torchrun.wait(_SECONDS_TO_CHECKPOINT)
            except subprocess.TimeoutExpired:
                torchrun.kill()
        relay.repeat()
    outcome = _read_outcome(folder)
    if torchrun.returncode or "notes" not in outcome:
        _raise_failure(outcome, torchrun.returncode)
    return dict(outcome["notes"])


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_SECONDS_BETWEEN_LOOKS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _read_outcome(folder: Path) -> dict[str, Any]:
    """Return what a worker of this node has left behind: notes when all went well, or the error that it failed with."""
    path = folder / OUTCOME
    outcome: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return outcome


def _raise_failure(outcome: dict[str, Any], code: int, where: str = "") -> NoReturn:
    """Raise the error that the training failed with. `code`: torchrun's, 128 + the signal if that is what one of its
    workers died of."""
    match outcome:
        case {"error": sentence}:
            raise PipelineError(sentence)
        case {"system": [number, reason, path]}:
            raise OSError(number, reason, path) if path else OSError(number, reason)
        case {"bug": last, "traceback": traceback}:
            logger.error("a training process failed:\n%s", traceback)
            raise PipelineError(f"a training process failed{where} ({last}); its traceback is above; {_KEPT}")
    if code - 128 in set(signal.Signals):
        name = signal.Signals(code - 128).name
        why = ", as Linux does when memory is short" if name == "SIGKILL" else ""
        raise PipelineError(f"a training process was killed by {name}{where}{why}; {_KEPT}")
    raise PipelineError(f"a training process died (torchrun's exit code {code}){where}; {_KEPT}")


def _environment(settings: Settings) -> dict[str, str]:
    """Return this process's environment, with each worker's share of the cores as its number of threads; torchrun would
    give it one."""
    return {"OMP_NUM_THREADS": str(threads_of_each(settings.processes)), **os.environ}


def _torchrun(settings: Settings, folder: str) -> Sequence[str]:
    where = ["--standalone"]
    if settings.nodes > 1:
        host, port = settings.meeting_point()
        where = [f"--nnodes={settings.nodes}", f"--node-rank={settings.node_rank}"]
        where += [f"--master-addr={host}", f"--master-port={port}"]
    where += [f"--shutdown-timeout={_SECONDS_TO_CHECKPOINT}"]  # after a SIGTERM of its own
    worker = ["-m", "pipeline.training.worker"]
    workers = [f"--nproc-per-node={settings.processes}", *worker, settings.torch_device(), settings.attention, folder]
    return [sys.executable, *worker, "torchrun", str(os.getpid()), *where, *workers]
