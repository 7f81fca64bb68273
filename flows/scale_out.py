"""Shards of images as Prefect tasks on a Dask cluster: what `settings.dask_address` means inside a flow run.

The stage itself is a task in the process of the flow. While it encodes images, groups of its shards are submitted to
Prefect's Dask task runner, which it starts for that time only: no cluster idles while k-means or a training runs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed

from pipeline.engine.errors import PipelineError
from pipeline.engine.map_shards import Done, MapShards, Shard, in_groups
from pipeline.engine.scale_out import dask_cluster, explained, workers_of
from pipeline.engine.settings import Settings


@task(name="encode_shards", cache_policy=NO_CACHE, persist_result=False)
def encode_shards(encode: Callable[[], Any]) -> Any:
    """Encode some shards of a stage's images, on a worker of the Dask cluster."""
    return encode()


@dataclass(frozen=True)
class PrefectShards:
    """A `MapShards` whose groups are tasks of the flow run. Dask gives those of a worker that died to another one."""

    settings: Settings

    def __call__(self, work: Callable[[Sequence[Shard]], Done], shards: Sequence[Shard]) -> Iterator[Done]:
        with dask_cluster(self.settings) as cluster, _task_runner(cluster) as runner:
            groups = in_groups(shards, workers=workers_of(runner.client, self.settings))
            named = [encode_shards.with_options(task_run_name=f"shards-{place}") for place in range(len(groups))]
            # `partial` keeps Prefect from walking through every row of every shard in search of futures.
            tasks = [(one, {"encode": partial(work, group)}) for one, group in zip(named, groups, strict=True)]
            for future in as_completed([runner.submit(one, parameters) for one, parameters in tasks]):
                with explained(self.settings):
                    done: Done = future.result()
                yield done


def prefect_shards(settings: Settings) -> MapShards | None:
    """Choose a flow's `map_shards`; None: shards are encoded as they are without Prefect."""
    return PrefectShards(settings) if settings.dask_address else None


def _task_runner(cluster: Any) -> Any:
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError:
        raise PipelineError(
            "settings.dask_address needs Prefect's Dask task runner, which is not installed; pip install mapet[dask]"
        ) from None
    return DaskTaskRunner(address=cluster) if isinstance(cluster, str) else DaskTaskRunner(cluster=cluster)
