"""Places on GPUs: Prefect's global concurrency limit `gpu`, with a slot for each GPU of the workers.

Only a stage that computes on a GPU takes them, as many as its process sees, and only while it is built: not while it is
found, nor while it waits for another run that builds the same. So an index or a report holds no GPU's place, and there
may be more flow runs at once than GPUs. They are taken under the lock of the artifact and never the other way round, or
two runs could wait for each other. On a CPU, and where nobody has made the limit, nothing is taken.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from pipeline.engine.devices import visible_gpus
from pipeline.engine.settings import Settings
from pipeline.engine.stage import Stage
from pipeline.engine.words import counted
from pipeline.engine.workspace import AtWork, freely

logger = logging.getLogger("mapet.stages")

GPU_LIMIT = "gpu"
_LEASE_SECONDS = 60.0  # after which the place of a process that was killed is free; the least that Prefect takes


@dataclass(frozen=True)
class GpuPlaces:
    """An `AtWork` that holds the places of a stage that computes on the GPUs that its process sees."""

    settings: Settings

    def __call__(self, stage: Stage) -> AbstractContextManager[None]:
        if not stage.USES_GPU:
            return nullcontext()
        return places_held(max(1, len(visible_gpus(self.settings.torch_device()))), stage.NAME)


def gpu_places(settings: Settings) -> AtWork:
    """Choose a flow's `at_work`; says so where GPUs are there and the limit is not. Imports torch."""
    if not settings.torch_device().startswith("cuda"):
        return freely
    try:
        with get_client(sync_client=True) as client:
            client.read_global_concurrency_limit_by_name(GPU_LIMIT)
    except ObjectNotFound:
        logger.info(
            "Prefect has no concurrency limit %r: stages of other runs may compute on the same GPU at the same time. "
            "`python -m flows.register` where the workers' GPUs are, or `prefect gcl create %s --limit GPUS` makes it",
            *(GPU_LIMIT, GPU_LIMIT),
        )
        return freely
    except httpx.HTTPError as error:
        logger.warning(_WITHOUT, error)
        return freely
    return GpuPlaces(settings)


@contextmanager
def places_held(gpus: int, what: str) -> Iterator[None]:
    """Hold places meanwhile, after waiting until so many are free, or all that there are.

    A server that is away or refuses stops nothing: the stage goes on without, and that is said.
    """
    place: AbstractContextManager[None] = nullcontext()
    try:
        wanted = _wanted(gpus, what)
        # A lease that cannot be renewed ends no stage.
        place = concurrency(GPU_LIMIT, wanted, lease_duration=_LEASE_SECONDS, raise_on_lease_renewal_failure=False)
        place.__enter__()
    except (httpx.HTTPError, ObjectNotFound, ConcurrencySlotAcquisitionError) as error:
        logger.warning(_WITHOUT, error.__cause__ or error)
        place = nullcontext()
    try:
        yield
    finally:
        try:
            place.__exit__(None, None, None)
        except httpx.HTTPError as error:
            logger.warning("a place on a GPU is free in Prefect only in %g s: %s", _LEASE_SECONDS, error)


_WITHOUT = "computing without a place on a GPU, as Prefect's server gives none: %s"


def _wanted(gpus: int, what: str) -> int:
    """Return how many places to take; says so if it will have to wait for them."""
    with get_client(sync_client=True) as client:
        limit = client.read_global_concurrency_limit_by_name(GPU_LIMIT)
    wanted = max(1, min(gpus, limit.limit))
    if limit.active and limit.active_slots + wanted > limit.limit:
        places = counted(wanted, "place")
        logger.info(
            "%s waits for %s on GPUs: %d of %d are taken (Prefect's limit %r)",
            *(what, places, limit.active_slots, limit.limit, GPU_LIMIT),
        )
    return wanted


def provide_gpu_limit(client: SyncPrefectClient, gpus: int) -> str:
    """Make the limit unless it is there, or there are no GPUs. Returns what there is to say; "" for nothing."""
    try:
        there = client.read_global_concurrency_limit_by_name(GPU_LIMIT).limit
    except ObjectNotFound:
        if not gpus:
            return ""
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=gpus))
        return f"concurrency limit {GPU_LIMIT}: {counted(gpus, 'place')}"
    if gpus in (0, there):
        return ""
    return (
        f"the concurrency limit {GPU_LIMIT} keeps its {counted(there, 'place')}, as set in Prefect; for the "
        f"{counted(gpus, 'GPU')} of this machine alone: `prefect gcl update {GPU_LIMIT} --limit {gpus}`"
    )
