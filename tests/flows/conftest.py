"""One Prefect server and one process worker for all tests that need them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.flows.prefect_server import FlowRun, PrefectServer, prefect_server, running
from tests.flows.small_build import DEPLOYMENT, EVALUATION, PRETRAINING, SMALL, SMALL_OVERRIDES, as_parameter


@dataclass(frozen=True)
class Worker:
    """A process worker that was started in `folder`, with a deployment for every preset."""

    server: PrefectServer
    folder: Path

    @property
    def data_root(self) -> Path:
        return self.folder / "data"  # the default of MAPET_DATA_ROOT, in the folder of the worker

    def made(self, run: FlowRun, stage: str) -> Path:
        """Return the artifact that a stage of this run has made or found, as its task says."""
        message: str = self.server.stages_of(run)[stage]["state"]["message"]
        return Path(message.rpartition(": ")[2])


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


@pytest.fixture(scope="session")
def first_runs(worker: Worker) -> tuple[FlowRun, FlowRun]:
    """Two runs that want the same artifacts at the same time, one of them started by command.

    The first that build them on this worker: whoever needs the images and tokens of a small build asks for these runs.
    """
    other = worker.server.start(DEPLOYMENT, as_parameter(SMALL))
    return worker.server.run_by_command(DEPLOYMENT, config=as_parameter(SMALL)), worker.server.ended(other)


@pytest.fixture(scope="session")
def pretrained(worker: Worker, first_runs: tuple[FlowRun, FlowRun]) -> FlowRun:
    """A run of `pretrain/demo` on the images and tokens of that build."""
    return worker.server.ended(worker.server.start_with("pretrain/demo", overrides=[*SMALL_OVERRIDES, *PRETRAINING]))


@pytest.fixture(scope="session")
def evaluated(worker: Worker, pretrained: FlowRun) -> FlowRun:
    """A run of `evaluate/demo` afterwards, of what was pre-trained."""
    return worker.server.ended(worker.server.start_with("evaluate/demo", overrides=[*SMALL_OVERRIDES, *EVALUATION]))
