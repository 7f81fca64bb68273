"""Which services there are: their commands, and the environments they live in."""

import os
from collections.abc import Sequence
from pathlib import Path

from flows.services.processes import Service, ServiceFolder
from flows.services.settings import HOST, WORK_POOL, ServiceSettings

PREFECT, MLFLOW = "prefect", "mlflow"
LEASE_STORAGE = "prefect.server.concurrency.lease_storage.filesystem"  # one of the two that Prefect has


def with_ports_in_use(settings: ServiceSettings, folder: ServiceFolder) -> ServiceSettings:
    """Put in the ports of what runs already: it stays where it is, whatever the settings say now."""
    return settings.model_copy(update={f"{name}_port": one.port for name, one in folder.alive().items() if one.port})


def mlflow_server(settings: ServiceSettings) -> Service:
    """Describe MLflow over the database and the folder of runs without a server: nothing moves, and both can be used.

    Runs write their files themselves (`--no-serve-artifacts`): an experiment made through the server then takes runs
    that know no server, too.
    """
    database, files = settings.layout.tracking_database, settings.layout.tracking_artifacts
    stores = ("--backend-store-uri", f"sqlite:///{database}", "--default-artifact-root", files.as_uri())
    return Service(
        name=MLFLOW,
        words=("mlflow", "server", *_listening(settings.mlflow_port), "--workers=1", "--no-serve-artifacts", *stores),
        # Its jobs are for language models: seven more processes and 2 GB.
        environment={**environment(settings), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        folder=settings.layout.services,
        port=settings.mlflow_port,
        port_setting="MAPET_MLFLOW_PORT",
    )


def prefect_server(settings: ServiceSettings) -> Service:
    """Describe Prefect's API, pages and scheduler, over SQLite in its home or the database that its settings name."""
    pages = ",".join(f"http://{host}:{settings.prefect_port}" for host in (HOST, "localhost"))
    return Service(
        name=PREFECT,
        words=("prefect", "server", "start", *_listening(settings.prefect_port)),
        environment={
            **environment(settings),
            # By default any web page that is open in a browser of this machine may use the API.
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": pages,
            # By default in its memory: a place on a GPU (flows/gpu_places.py) that is held while the server is started
            # again would never be free.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASE_STORAGE,
        },
        folder=settings.layout.services,
        port=settings.prefect_port,
        port_setting="MAPET_PREFECT_PORT",
    )


def workers(settings: ServiceSettings, shares: Sequence[tuple[str, ...]]) -> list[Service]:
    """Describe one worker per job, each with its share of the GPUs.

    A process worker hands its environment on to its runs and cannot give one run another GPU than the next. So there
    are as many workers as runs at once, each of which takes one at a time (`--limit 1`) and sees only its GPUs. The
    work pool is limited to the same number: runs that outlived a killed worker count there, and keep their GPU.
    """
    return [_worker(f"worker-{number}", settings, share) for number, share in enumerate(shares, start=1)]


def environment(settings: ServiceSettings) -> dict[str, str]:
    """Return the environment of the services and of commands that talk to them: this process's own, with the addresses
    and without telemetry."""
    # A proxy of the network is not asked for 127.0.0.1.
    direct = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), HOST]))
    return {
        **os.environ,
        "NO_PROXY": direct,
        "no_proxy": direct,
        "PREFECT_API_URL": f"{settings.prefect_url}/api",
        "PREFECT_HOME": str(settings.layout.services / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONSAFEPATH": "1",  # `python -m` would put the current folder before the installed packages
    }


def _worker(name: str, settings: ServiceSettings, gpus: tuple[str, ...]) -> Service:
    words = ("prefect", "worker", "start", "--pool", WORK_POOL, "--name", name, "--limit", "1")
    own = {
        "MAPET_DATA_ROOT": str(settings.layout.root),
        "MAPET_TRACKING_URI": settings.tracking_uri or settings.mlflow_url,
    }
    if gpus:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if len(gpus) > 1 and "processes" not in settings.model_fields_set:
        own["MAPET_PROCESSES"] = str(len(gpus))
    hurry = {"PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "3")}  # 10 by default
    return Service(
        name=name,
        words=words,
        environment={**environment(settings), **hurry, **own},
        folder=Path.cwd(),  # paths in parameters, and `.env`, are relative to where the user is
    )


def _listening(port: int) -> tuple[str, ...]:
    return "--host", HOST, "--port", str(port)
