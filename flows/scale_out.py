"""Units of images as Prefect tasks on a Dask cluster: what `settings.dask_address` means inside a flow run.

The stage itself is a task in the process of the flow. While it encodes images, groups of its units are submitted to
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
from pipeline.engine.scale_out import (
    Done,
    MapUnits,
    Unit,
    dask_cluster,
    explained,
    in_groups,
    spread_over_gpus,
    workers_of,
)
from pipeline.engine.settings import Settings


@task(name="encode_units", cache_policy=NO_CACHE, persist_result=False)
def encode_units(encode: Callable[[], Any]) -> Any:
    """Some units of a stage's images, encoded by a worker of the Dask cluster."""
    return encode()


@dataclass(frozen=True)
class PrefectUnits:
    """A `MapUnits` whose groups are tasks of the flow run. Dask gives those of a worker that died to another one."""

    settings: Settings

    def __call__(self, work: Callable[[Sequence[Unit]], Done], units: Sequence[Unit]) -> Iterator[Done]:
        with dask_cluster(self.settings) as cluster, _task_runner(cluster) as runner:
            groups = in_groups(units, workers=workers_of(runner.client, self.settings))
            named = [encode_units.with_options(task_run_name=f"units-{place}") for place in range(len(groups))]
            # `partial` keeps Prefect from walking through every row of every unit in search of futures.
            tasks = [(one, {"encode": partial(work, group)}) for one, group in zip(named, groups, strict=True)]
            for future in as_completed([runner.submit(one, parameters) for one, parameters in tasks]):
                with explained(self.settings):
                    done: Done = future.result()
                yield done


def prefect_units(settings: Settings) -> MapUnits | None:
    """What a flow's workspace has as `map_units`; None: units are encoded in the process of the flow."""
    spread = spread_over_gpus(settings)
    return PrefectUnits(spread) if spread.dask_address else None


def _task_runner(cluster: Any) -> Any:
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError:
        raise PipelineError(
            "settings.dask_address needs Prefect's Dask task runner, which is not installed; pip install mapet[dask]"
        ) from None
    return DaskTaskRunner(address=cluster) if isinstance(cluster, str) else DaskTaskRunner(cluster=cluster)
