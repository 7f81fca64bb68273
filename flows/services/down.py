"""Stop what was started, gently at first: runs, then their workers, then the servers that they report to."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress

import psutil

from flows.services.catalogue import with_ports_in_use
from flows.services.lost_runs import end_lost_runs
from flows.services.prefect_api import PrefectApi
from flows.services.processes import ServiceFolder, gone, groups_of, signal_groups
from flows.services.settings import WORK_POOL, ServiceSettings
from pipeline.engine.errors import PipelineError

# A run that is told to stop writes a checkpoint of its model and says in Prefect and MLflow how it ended.
_RUN_SECONDS = 60.0
_SERVICE_SECONDS = 15.0


def down(settings: ServiceSettings, *, patience: float, say: Callable[[str], None]) -> list[str]:
    """Stop all services. Returns the names of those that had a process left.

    No new runs begin. Those that run have `patience` seconds to end by themselves, then they are told to stop, which
    keeps finished stages, finished shards and a checkpoint; after a minute they are killed.
    """
    folder = ServiceFolder(settings.layout.services)
    if not folder.records():
        return []
    with folder.locked():
        api = PrefectApi(with_ports_in_use(settings, folder).prefect_url)
        names = list(folder.records())
        found = [name for name in names if folder.processes(name)]
        workers = [name for name in found if name.startswith("worker-")]
        if workers:
            # Before the workers: one that is told to stop kills its runs at once (Prefect 3.9.1), without a checkpoint.
            with _no_new_runs(api):
                _stop_runs(folder, workers, patience=patience, say=say)
                stop(folder, workers)
                with suppress(PipelineError):
                    end_lost_runs(folder, api, say=say)
        for name in reversed(found):
            stop(folder, [name])
        folder.forget(*names)
    return found


def stop(folder: ServiceFolder, names: Sequence[str], *, spared: Set[int] = frozenset()) -> None:
    """Stop services with all their processes, but for the groups `spared`. Only what carries their mark is touched."""

    def left() -> list[psutil.Process]:
        return [process for process in folder.processes(*names) if not groups_of([process]) & spared]

    for pid in _mains(folder, names):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    if not gone(left, _SERVICE_SECONDS):
        signal_groups(left(), signal.SIGKILL)
        gone(left, _SERVICE_SECONDS)
    folder.forget(*(name for name in names if not folder.processes(name)))


def _stop_runs(folder: ServiceFolder, workers: Sequence[str], *, patience: float, say: Callable[[str], None]) -> None:
    """Stop the runs, also those whose worker was killed; each is a process group of its own, by Prefect."""
    mains = _mains(folder, workers)

    def runs() -> list[psutil.Process]:
        return [process for process in folder.processes(*workers) if process.pid not in mains]

    if runs():
        say(f"waiting for what runs: {patience:g} s, then it is told to stop")
    if not gone(runs, patience):
        signal_groups(runs(), signal.SIGTERM, but=mains)
        if not gone(runs, _RUN_SECONDS):
            say(f"a run did not stop within {_RUN_SECONDS:g} s; it is killed")
            signal_groups(runs(), signal.SIGKILL, but=mains)
            gone(runs, _SERVICE_SECONDS)


def _mains(folder: ServiceFolder, names: Sequence[str]) -> set[int]:
    return {one.pid for name, one in folder.alive().items() if name in names}


@contextmanager
def _no_new_runs(api: PrefectApi) -> Iterator[None]:
    """Pause the work pool meanwhile; a server that does not answer hands out no runs anyway."""
    try:
        was_paused = api.pool_is_paused(WORK_POOL)
        api.pause_pool(WORK_POOL, True)
    except PipelineError:
        yield
        return
    try:
        yield
    finally:
        with suppress(PipelineError):
            api.pause_pool(WORK_POOL, was_paused)
