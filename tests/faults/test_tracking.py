"""MLflow goes away in the middle of a run, comes back or not; and a process dies while it makes MLflow's database."""

import logging
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.mlflow_tracker import MlflowRun, mlflow_run, tracking_uri
from pipeline.outbox import Away, Message, Outbox, Refused
from pipeline.settings import Settings
from pipeline.tracker import TrackedRun
from pipeline.training.history import read_history
from pipeline.wiring.tokens import TokenizedImages
from tests.mlflow_server import MlflowServer
from tests.trainings import small_pretraining, tokenize_photos


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> TokenizedImages:
    return tokenize_photos(tmp_path_factory.mktemp("tokenized"), train=12, val=3)


class LosesItsServer:
    """The real run, and a server that dies once a few steps of the training have been told."""

    def __init__(self, run: TrackedRun, server: MlflowServer) -> None:
        self._run, self._server, self.steps = run, server, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._run, name)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.steps += 1
        if self.steps == 3:
            self._run.flush()  # type: ignore[attr-defined]
            self._server.down()
        self._run.metrics(values, step)
        self._run.flush()  # type: ignore[attr-defined]

    @contextmanager
    def child(self, name: str) -> Iterator["LosesItsServer"]:
        with self._run.child(name) as child:
            yield LosesItsServer(child, self._server)

    @contextmanager
    def comparable(self, name: str, group: str) -> Iterator["LosesItsServer"]:
        with self._run.comparable(name, group) as comparable:
            yield LosesItsServer(comparable, self._server)


def runs_of(settings: Settings, experiment: str) -> dict[str, Run]:
    client = MlflowClient(tracking_uri(settings))
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


def test_a_server_that_dies_in_mid_training_changes_no_byte_and_is_told_all_of_it_when_it_is_back_or_said_to_miss_it(
    tokenized: TokenizedImages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = small_pretraining(tokenized, tmp_path / "alone").artifact
    with MlflowServer(tmp_path / "mlflow") as server:
        page = "https://lab.example/mlflow"
        settings = Settings(data_root=tmp_path / "data", tracking_uri=server.url, tracking_page=f"{page}/")
        with mlflow_run("comes back", settings) as run:
            assert isinstance(run, MlflowRun)
            assert re.fullmatch(rf"{page}/#/experiments/\d+/runs/{run.id}", run.link)
            made = small_pretraining(tokenized, settings.data_root, run=LosesItsServer(run, server)).artifact
            assert "is away" in caplog.text
            server.up()
        assert made.digest == alone.digest
        assert "has been told everything" in caplog.text
        trained = runs_of(settings, "mapet-pretrain")["pretrain mapet vit_demo"]
        assert trained.info.status == "FINISHED"
        told = MlflowClient(server.url).get_metric_history(trained.info.run_id, "loss")
        curve = {entry["step"]: entry["loss"] for entry in read_history(made.path) if "loss" in entry}
        assert {point.step: point.value for point in told} == pytest.approx(curve)
        assert runs_of(settings, "mapet")["comes back"].info.status == "FINISHED"

        caplog.clear()
        started = time.monotonic()
        with mlflow_run("stays away", settings) as run:
            server.down()
            run.params({"one": 1})
            with run.child("a stage") as child:
                child.metrics({"loss": 1.0}, 1)
                assert (child.id, child.link) == ("", "")
        assert time.monotonic() - started < 60, "the client's own patience is four minutes for each message"
    [warning] = [record.message for record in caplog.records if "did not come back" in record.message]
    assert "stays away (2), a stage (3)" in warning  # parameters and end; creation, metrics and end


def test_messages_keep_their_order_and_what_is_refused_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    told: list[int] = []
    answers = iter([None, Away("no answer"), None, Refused("not this one"), None])

    def message(number: int) -> Message:
        def send() -> None:
            if isinstance(answer := next(answers), Exception):
                raise answer
            told.append(number)

        return Message(f"message {number}", "a run", send)

    outbox = Outbox("the server")
    for number in range(4):
        outbox.put(message(number))
    assert told == [0], "no second try before its time"
    caplog.set_level(logging.WARNING, "mapet.tracker")
    outbox.close()
    assert told == [0, 1, 3]
    assert "the server does not take message 2 of a run (not this one)" in caplog.text


def open_a_run(root: Path) -> None:
    with mlflow_run("killed while it made the database", Settings(data_root=root)):
        pass


def test_a_process_killed_while_it_makes_the_database_leaves_none_and_the_next_makes_it(tmp_path: Path) -> None:
    context, drawn = get_context("forkserver"), random.Random(0)
    context.set_forkserver_preload(["tests.faults.preload"])
    folder = Settings(data_root=tmp_path).layout.tracking_database.parent
    process = context.Process(target=open_a_run, args=(tmp_path,))
    process.start()
    while process.is_alive() and not any(path.stat().st_size for path in folder.glob("*.tmp")):
        time.sleep(0.001)
    time.sleep(drawn.uniform(0, 1))  # making it takes seconds
    process.kill()
    process.join()
    assert not (folder / "mlflow.db").exists(), "a part of the tables would be there, and never the rest"
    open_a_run(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["mlflow.db"]
