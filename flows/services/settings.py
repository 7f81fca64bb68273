"""What the services of this machine are told: ports, how many runs at once, which run gets which GPUs."""

import shutil
from collections.abc import Sequence

from pydantic import Field

from pipeline.configuration.overrides import validated
from pipeline.engine import devices
from pipeline.engine.settings import Settings, check_environment

HOST = "127.0.0.1"
WORK_POOL = "mapet"


class ServiceSettings(Settings):
    """The machine's settings, and those of its servers and workers; from the environment or `.env`, like all."""

    prefect_port: int = Field(default=4200, ge=1, le=65535)
    """Port of the Prefect server."""

    mlflow_port: int = Field(default=5000, ge=1, le=65535)
    """Port of the MLflow server."""

    runs: int = Field(default=0, ge=0)
    """Flow runs at once, each in a worker of its own; 0 is one per GPU, or one where there is none."""

    @property
    def prefect_url(self) -> str:
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        return f"http://{HOST}:{self.mlflow_port}"

    @property
    def tracks_here(self) -> bool:
        """Whether runs are tracked by the MLflow server of this machine, not by one that somebody else runs."""
        return self.tracking_uri.rstrip("/") in ("", self.mlflow_url)


def load_service_settings(runs: int | None = None) -> ServiceSettings:
    """Read the settings from the environment; a given `runs` goes before `MAPET_RUNS`.

    Raises:
        PipelineError: a value is impossible.
    """
    check_environment()
    return validated(ServiceSettings, {} if runs is None else {"runs": runs})


def visible_gpus(settings: ServiceSettings) -> tuple[str, ...]:
    """List the GPUs to divide among workers, as `CUDA_VISIBLE_DEVICES` names them; imports torch if there is a driver.

    There are none if the device is chosen (`MAPET_DEVICE=cpu`, `cuda:1`): its name would mean another GPU in a worker
    that sees only some of them.
    """
    if settings.device not in ("auto", "cuda") or shutil.which("nvidia-smi") is None:
        return ()
    return devices.visible_gpus("cuda")


def gpus_of_workers(settings: ServiceSettings) -> int:
    """Count the GPUs that all workers of this machine have together."""
    return len(visible_gpus(settings)) or int(settings.device.startswith("cuda:"))


def divide(gpus: Sequence[str], runs: int) -> list[tuple[str, ...]]:
    """Share the GPUs out to workers: by default one each, several when there are fewer runs, shared when more."""
    runs = runs or max(1, len(gpus))
    if runs > len(gpus) > 0:
        return [(gpus[run % len(gpus)],) for run in range(runs)]
    return [tuple(gpus[run::runs]) for run in range(runs)]
