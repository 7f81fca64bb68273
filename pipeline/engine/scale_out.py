"""Shards of a stage on the workers of a Dask cluster, on this machine or on many.

The only file of the pipeline that imports Dask; Prefect's flows bring a mapper of their own (`flows/scale_out.py`), to
the same cluster.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from secrets import token_hex
from typing import Any

from pipeline.engine.devices import visible_gpus
from pipeline.engine.errors import PipelineError
from pipeline.engine.map_shards import Done, Shard, in_groups
from pipeline.engine.settings import LOCAL_DASK, Settings
from pipeline.engine.threads import threads_of_each

_SECONDS_FOR_RESTARTS = 30


@dataclass(frozen=True)
class DaskShards:
    """A `MapShards` on the cluster that the settings name, without Prefect."""

    settings: Settings

    def __call__(self, work: Callable[[Sequence[Shard]], Done], shards: Sequence[Shard]) -> Iterator[Done]:
        from distributed import Client, as_completed

        with dask_cluster(self.settings) as cluster, Client(cluster, set_as_default=False) as client:
            groups = in_groups(shards, workers=workers_of(client, self.settings))
            run = token_hex(4)  # a scheduler takes equal keys for equal tasks
            futures = [client.submit(work, group, key=f"shards-{run}-{place}") for place, group in enumerate(groups)]
            for future in as_completed(futures, loop=client.loop):
                with explained(self.settings):
                    done: Done = future.result()
                yield done


@contextmanager
def dask_cluster(settings: Settings) -> Iterator[Any]:
    """Provide what a Dask client connects to: a cluster on this machine, which ends with the block, or an address.

    Raises:
        PipelineError: Dask is not installed, or nobody answers at the address.
    """
    if find_spec("distributed") is None:
        raise PipelineError(
            f"settings.dask_address={settings.dask_address} needs Dask, which is not installed; pip install mapet[dask]"
        )
    if settings.dask_address == LOCAL_DASK:
        with _local_cluster(settings) as cluster:
            yield cluster
    else:
        _require_answer(settings.dask_address)
        yield settings.dask_address


@contextmanager
def _local_cluster(settings: Settings) -> Iterator[Any]:
    import dask
    from distributed import LocalCluster

    gpus = visible_gpus(settings.torch_device())

    class OneGpuEach(LocalCluster):
        """Gives each worker one of the machine's GPUs, in turn; Dask itself would have all of them take the first."""

        def new_worker_spec(self) -> dict[Any, Any]:
            new: dict[Any, Any] = super().new_worker_spec()
            if not gpus:
                return new
            return {
                name: {**spec, "options": {**spec["options"], "env": {"CUDA_VISIBLE_DEVICES": gpus[name % len(gpus)]}}}
                for name, spec in new.items()
            }

    threads = str(threads_of_each(settings.dask_workers))
    config = {
        "distributed.worker.daemon": False,  # a daemon may not have processes that decode for it
        **{f"distributed.nanny.pre-spawn-environ.{name}": threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")},
    }
    nannies = logging.getLogger("distributed.nanny")  # which start a worker again that was killed
    level = nannies.level
    with (
        dask.config.set(config),  # as long as the cluster lives, for workers that are started again
        OneGpuEach(
            n_workers=0,
            threads_per_worker=1,
            host="127.0.0.1",
            security=True,  # TLS with keys of its own: who can talk to a worker can run anything as its user
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # it serves its health there all the same
            memory_limit=0,  # an encoder may take what there is
        ) as cluster,
    ):
        cluster.scale(settings.dask_workers)
        try:
            yield cluster
        finally:
            _wait_for_restarts(cluster, settings.dask_workers)
        nannies.setLevel(logging.ERROR)  # that a process full of torch ends slowly and has to be killed is no news
    nannies.setLevel(level)


def _wait_for_restarts(cluster: Any, workers: int) -> None:
    """Wait until killed workers are back: Dask fails with an AssertionError when a cluster ends while it starts one
    again."""
    with suppress(TimeoutError):
        cluster.wait_for_workers(workers, timeout=_SECONDS_FOR_RESTARTS)


def workers_of(client: Any, settings: Settings) -> int:
    """Return how many workers the cluster has, or is expected to have."""
    return max(len(client.nthreads()), settings.dask_workers)


@contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Say Dask's own failures in sentences for users."""
    from distributed.client import FutureCancelledError
    from distributed.scheduler import KilledWorker

    try:
        yield
    except KilledWorker as error:
        raise PipelineError(
            f"{error.allowed_failures + 1} workers of the Dask cluster died while they encoded the same shards; the "
            "system may have killed them for memory: make settings.batch_size smaller, or start fewer workers on a "
            "machine; what is done is kept"
        ) from error
    except FutureCancelledError as error:
        raise PipelineError(
            f"the Dask scheduler of settings.dask_address={settings.dask_address} went away ({error}); start it and "
            "run this again: what is done is kept"
        ) from error


def _require_answer(address: str) -> None:
    from distributed import Client

    try:
        Client(address, set_as_default=False).close()
    except (OSError, ValueError, TypeError) as error:
        raise PipelineError(
            f"settings.dask_address={address}: no Dask scheduler answers ({error}); expected {LOCAL_DASK!r} or "
            "tcp://host:8786 of one that `dask scheduler` started"
        ) from error
