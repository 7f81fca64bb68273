"""Where shards of images are encoded, as the settings say: in this process, on all GPUs of this machine, or by Dask."""

from pipeline.engine.devices import require_gpus, visible_gpus
from pipeline.engine.gpu_shards import GpuShards
from pipeline.engine.map_shards import MapShards
from pipeline.engine.scale_out import DaskShards
from pipeline.engine.settings import LOCAL_DASK, Settings


def shard_mapper_of(settings: Settings) -> MapShards | None:
    """Return what hands shards to other processes as the settings ask; None where this process works on all of them.

    Raises:
        PipelineError: there are fewer GPUs than `settings.processes`.
    """
    if settings.dask_address:
        return DaskShards(settings)
    gpus = gpus_that_encode(settings)
    return GpuShards(gpus) if len(gpus) > 1 else None


def gpus_that_encode(settings: Settings) -> tuple[str, ...]:
    """Return the GPUs of this machine that encode images, as `CUDA_VISIBLE_DEVICES` names them: all that there are, or
    as many as processes train together, or as a local cluster has workers. Empty on a CPU, where the settings name one
    GPU, and where other machines encode.

    Raises:
        PipelineError: there are fewer GPUs than processes.
    """
    device = settings.torch_device()
    if settings.dask_address:
        return visible_gpus(device)[: settings.dask_workers if settings.dask_address == LOCAL_DASK else 0]
    require_gpus(device, settings.processes)
    return visible_gpus(device)[: settings.processes if settings.processes > 1 else None]


def settings_of_worker(settings: Settings) -> Settings:
    """Return the settings of one of the processes that encode images: its part of this machine, if it is on it."""
    if settings.dask_address:
        return settings.of_one_of(settings.dask_workers if settings.dask_address == LOCAL_DASK else 1)
    return settings.of_one_of(len(gpus_that_encode(settings)) or 1)
