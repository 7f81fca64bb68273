"""Runs whose worker was killed. Some of them go on without it, the others have nobody who says that they ended."""

import re
import signal
from collections.abc import Callable, Mapping

import psutil

from flows.services.prefect_api import OpenRun, PrefectApi
from flows.services.processes import ServiceFolder, Started, environment_of, gone, signal_groups
from flows.services.settings import WORK_POOL

_OURS = re.compile(r"(worker-\d+)?")  # or of none yet; runs of another machine's workers are not ours to judge
_STOP_SECONDS = 60.0


def end_lost_runs(folder: ServiceFolder, api: PrefectApi, *, say: Callable[[str], None]) -> list[OpenRun]:
    """Give every run an end that has no process and no living worker; to be called before workers are started.

    Returns those that nobody wanted to end. A run that was to be cancelled while its worker was dead is stopped.
    """
    workers = {name: one for name, one in folder.alive().items() if name and _OURS.fullmatch(name)}
    lost = []
    for run in api.open_runs(WORK_POOL):
        if not _OURS.fullmatch(run.worker) or _has_worker(run, workers):
            continue
        if run.is_cancelled:
            _stop(folder, run)
        if _processes(folder, run):
            say(f"the run {run.name} goes on without the worker that had started it")
            continue
        api.end_lost(run)
        if run.is_cancelled:
            say(f"the run {run.name} was to be cancelled when its worker was killed; it is")
        else:
            lost.append(run)
    return lost


def _has_worker(run: OpenRun, workers: Mapping[str, Started]) -> bool:
    """Tell whether a worker that lives may yet start the process of a run that has none; a later one of its name will
    not."""
    if not run.worker:
        return bool(workers)
    return run.worker in workers and workers[run.worker].started < run.since


def _processes(folder: ServiceFolder, run: OpenRun) -> list[psutil.Process]:
    """Find the processes of a run, which outlive a worker that was killed."""
    ours = folder.processes(*folder.records())
    return [process for process in ours if environment_of(process).get("PREFECT__FLOW_RUN_ID") == run.id]


def _stop(folder: ServiceFolder, run: OpenRun) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        signal_groups(_processes(folder, run), number)
        if gone(lambda: _processes(folder, run), _STOP_SECONDS):
            return
