"""The work pool and the deployments, made by commands of their own: importing Prefect's client takes seconds."""

import subprocess
import sys

from flows.services.catalogue import environment, with_ports_in_use
from flows.services.prefect_api import PrefectApi
from flows.services.processes import ServiceFolder
from flows.services.settings import WORK_POOL, ServiceSettings
from pipeline.engine.errors import PipelineError


def deploy(settings: ServiceSettings) -> list[str]:
    """Register every preset with the running server. Returns what there is to say of it, a line each.

    Raises:
        PipelineError: the server does not answer, or does not take them.
    """
    settings = with_ports_in_use(settings, ServiceFolder(settings.layout.services))
    if not PrefectApi(settings.prefect_url).healthy:
        raise PipelineError(f"no Prefect server answers at {settings.prefect_url}; start it with `make up`")
    provide_pool(settings)
    return _run(settings, "flows.register").splitlines()


def provide_pool(settings: ServiceSettings) -> None:
    """Create the work pool unless it is there. Raises PipelineError if the server does not let it."""
    if not PrefectApi(settings.prefect_url).has_pool(WORK_POOL):
        _run(settings, "prefect", "work-pool", "create", WORK_POOL, "--type", "process")


def _run(settings: ServiceSettings, *words: str) -> str:
    """Run `python -m words...` with the services' environment and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise PipelineError(f"`{' '.join(words)}` failed:\n{said}")
    return done.stdout
