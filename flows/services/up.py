"""Start what is missing: MLflow, Prefect's server, the work pool, the deployments, the workers."""

import os
import socket
import sqlite3
import time
from collections.abc import Callable

from flows.services import catalogue
from flows.services.deploy import deploy, provide_pool
from flows.services.down import stop
from flows.services.health import works
from flows.services.lost_runs import end_lost_runs
from flows.services.prefect_api import PrefectApi
from flows.services.processes import Service, ServiceFolder, Started, groups_of, last_lines
from flows.services.settings import HOST, WORK_POOL, ServiceSettings, divide, visible_gpus
from pipeline.engine.errors import PipelineError
from pipeline.engine.logs import without_passwords
from pipeline.engine.tracking_database import lead_files_here

Say = Callable[[str], None]

# A first start creates a database: 10 s when the machine is quiet, over 30 s when it is not.
_START_SECONDS = 180.0


def up(settings: ServiceSettings, *, say: Say, deploy_all: bool = True) -> ServiceSettings:
    """Start what does not run yet, and wait until it works. Returns the settings with the ports in use.

    What this call has started is stopped again when something fails.

    Raises:
        PipelineError: a port is taken, a service does not start (with the end of its log), other workers run.
    """
    settings.layout.services.mkdir(parents=True, exist_ok=True)
    folder = ServiceFolder(settings.layout.services)
    with folder.locked():
        settings = catalogue.with_ports_in_use(settings, folder)
        started: list[str] = []
        before = groups_of(folder.processes(*folder.records()))  # runs that outlived their worker, too
        try:
            _start_all(settings, folder, say=say, deploy_all=deploy_all, started=started)
        except BaseException:
            stop(folder, started, spared=before)
            raise
    return settings


def _start_all(
    settings: ServiceSettings, folder: ServiceFolder, *, say: Say, deploy_all: bool, started: list[str]
) -> None:
    workers = catalogue.workers(settings, divide(visible_gpus(settings), settings.runs))
    _refuse_other_workers(folder, [worker.name for worker in workers])
    folder.forget(*(name for name in folder.records() if not folder.processes(name)))
    _start_servers(settings, folder, say=say, started=started)
    provide_pool(settings)
    if deploy_all and catalogue.PREFECT in started:
        for line in deploy(settings):
            say(line)
    _start_workers(workers, settings, folder, say=say, started=started)


def _start_servers(settings: ServiceSettings, folder: ServiceFolder, *, say: Say, started: list[str]) -> None:
    servers = [catalogue.prefect_server(settings)]
    if settings.tracks_here:
        servers.insert(0, catalogue.mlflow_server(settings))
    else:
        say(f"MLflow is {without_passwords(settings.tracking_uri)}, as MAPET_TRACKING_URI says; none is started here")
    missing = _missing(servers, folder)
    for server in missing:
        _refuse_taken_port(server)
    if any(server.name == catalogue.MLFLOW for server in missing):
        _provide_mlflow_database(settings)
    for server in missing:
        _start(server, folder, started)
    for server in servers:
        _await(folder.records()[server.name], settings, folder)
    for server in servers:
        say(f"{_begun(server.name, started)}: {server.name} on port {server.port}")


def _start_workers(
    workers: list[Service], settings: ServiceSettings, folder: ServiceFolder, *, say: Say, started: list[str]
) -> None:
    api = PrefectApi(settings.prefect_url)
    _limit_pool(api, folder, len(workers), say=say)
    if api.pool_is_paused(WORK_POOL):
        say(f"the work pool {WORK_POOL} is paused: no run begins before `prefect work-pool resume {WORK_POOL}`")
    for run in end_lost_runs(folder, api, say=say):
        api.start_again(run)
        say(f"the run {run.name} had lost its process; it is started again, and goes on where it stopped")
    missing = _missing(workers, folder)
    for worker in missing:
        _start(worker, folder, started)
    for worker in workers:
        _await(folder.records()[worker.name], settings, folder)
        gpus = worker.environment.get("CUDA_VISIBLE_DEVICES")
        say(f"{_begun(worker.name, started)}: {worker.name}" + (f", GPU {gpus}" if gpus else ""))


def _missing(services: list[Service], folder: ServiceFolder) -> list[Service]:
    alive = folder.alive()
    return [service for service in services if service.name not in alive]


def _provide_mlflow_database(settings: ServiceSettings) -> None:
    """Make MLflow's database, or lead one that has moved to its files.

    MLflow's server would make one too, but stopped while it does, it leaves one that nobody can open; and it would look
    for the files of a database that has moved where they were.
    """
    try:
        if settings.layout.tracking_database.exists():
            lead_files_here(settings.layout)
            return
        from pipeline.engine.mlflow_tracker import provide_database  # whose import takes seconds

        provide_database(settings)
    except sqlite3.Error as error:
        raise PipelineError(
            f"MLflow's database {settings.layout.tracking_database} cannot be used ({error}); if no other program "
            "holds it, move it away: the next start makes a new one"
        ) from None


def _start(service: Service, folder: ServiceFolder, started: list[str]) -> None:
    started.append(service.name)
    folder.start(service)


def _await(service: Started, settings: ServiceSettings, folder: ServiceFolder) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not works(service, settings):
        if service.is_alive(folder.path) and time.monotonic() < deadline:
            time.sleep(0.3)
            continue
        what = f"does not answer after {_START_SECONDS:g} s" if service.is_alive(folder.path) else "has ended"
        raise PipelineError(f"{service.name} {what}; the end of {service.log}:\n{last_lines(service.log)}")


def _limit_pool(api: PrefectApi, folder: ServiceFolder, runs: int, *, say: Say) -> None:
    """Allow as many runs at once as there are workers, unless somebody has set another limit in Prefect."""
    limit, ours = api.pool_limit(WORK_POOL), folder.path / "pool_limit"
    if limit == runs:
        return
    if limit is None or (ours.exists() and ours.read_text() == str(limit)):
        api.limit_pool(WORK_POOL, runs)
        ours.write_text(str(runs))
        return
    say(
        f"the work pool {WORK_POOL} keeps its limit of {limit} runs at once, as set in Prefect; for {runs} workers: "
        f"`prefect work-pool set-concurrency-limit {WORK_POOL} {runs}`"
    )


def _refuse_other_workers(folder: ServiceFolder, names: list[str]) -> None:
    recorded = [name for name in folder.records() if name.startswith("worker-")]
    if recorded and recorded != names and any(name in folder.alive() for name in recorded):
        raise PipelineError(
            f"services for {len(recorded)} runs at once are up, {len(names)} are asked for; `make down` first"
        )


def _refuse_taken_port(server: Service) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just been stopped does not count
        try:
            probe.bind((HOST, server.port))
        except OSError as error:
            raise PipelineError(
                f"port {server.port} for {server.name} cannot be had ({os.strerror(error.errno or 0).lower()}); stop "
                f"what uses it, or choose another one: {server.port_setting}={(server.port or 0) + 1}"
            ) from None


def _begun(name: str, started: list[str]) -> str:
    return "started" if name in started else "runs already"
