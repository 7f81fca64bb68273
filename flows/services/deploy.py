"""The work pool and the deployments of prefect.yaml, made by Prefect's own command."""

import subprocess
import sys
from pathlib import Path

import flows
from flows.services.catalogue import environment, with_ports_in_use
from flows.services.prefect_api import PrefectApi
from flows.services.processes import ServiceFolder
from flows.services.settings import WORK_POOL, ServiceSettings
from pipeline.errors import PipelineError

_REPOSITORY = Path(flows.__file__).parents[1]


def deploy(settings: ServiceSettings) -> int:
    """Register the deployments of prefect.yaml with the running server. Returns how many it has.

    Raises:
        PipelineError: the server does not answer, or does not take them.
    """
    settings = with_ports_in_use(settings, ServiceFolder(settings.layout.services))
    api = PrefectApi(settings.prefect_url)
    if not api.healthy:
        raise PipelineError(f"no Prefect server answers at {settings.prefect_url}; start it with `make up`")
    if not (_REPOSITORY / "prefect.yaml").is_file():
        raise PipelineError(f"{_REPOSITORY} has no prefect.yaml; deploy from a checkout, installed with `make install`")
    provide_pool(settings)
    _prefect(settings, "--no-prompt", "deploy", "--all")
    return api.deployments()


def provide_pool(settings: ServiceSettings) -> None:
    """Create the work pool unless it is there. Raises PipelineError if the server does not let it."""
    if not PrefectApi(settings.prefect_url).has_pool(WORK_POOL):
        _prefect(settings, "work-pool", "create", WORK_POOL, "--type", "process")


def _prefect(settings: ServiceSettings, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *words],
        cwd=_REPOSITORY,
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise PipelineError(f"`prefect {' '.join(words)}` failed:\n{said}")
