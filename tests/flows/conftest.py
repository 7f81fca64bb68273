"""One Prefect server and one process worker for all tests that need them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.flows.prefect_server import PrefectServer, prefect_server, running


@dataclass(frozen=True)
class Worker:
    """A process worker that was started in `folder`, with a deployment for every preset."""

    server: PrefectServer
    folder: Path

    @property
    def data_root(self) -> Path:
        return self.folder / "data"  # the default of MAPET_DATA_ROOT, in the folder of the worker


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as started:
        yield started


@pytest.fixture(scope="session")
def worker(server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    created = server.prefect("work-pool", "create", "mapet", "--type", "process")
    assert created.returncode == 0, created.stdout + created.stderr
    folder = tmp_path_factory.mktemp("worker")
    command = ("worker", "start", "--pool", "mapet", "--name", "test")
    with running(command, server.environment, cwd=folder, log=folder / "worker.log"):
        deployed = server.python("-m", "flows.register", folder=folder)
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        yield Worker(server, folder)
