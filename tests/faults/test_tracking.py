"""MLflow goes away in the middle of a run, comes back or not; and a process dies while it makes MLflow's database."""

import logging
import random
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.engine import tracking_database
from pipeline.engine.errors import PipelineError
from pipeline.engine.kept_run import KeptRun
from pipeline.engine.mlflow_tracker import MlflowRun, mlflow_run, tracking_uri
from pipeline.engine.retry_queue import Away, Message, Refused, RetryQueue
from pipeline.engine.settings import Settings
from pipeline.engine.tracker import TrackedRun
from pipeline.training.history import read_history
from tests.builds import make_photos
from tests.commands import Said, mapet
from tests.forked import server
from tests.mlflow_server import MlflowServer
from tests.stages import TokenizedImages
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
    def comparable(self, name: str, group: str, kept: KeptRun) -> Iterator["LosesItsServer"]:
        with self._run.comparable(name, group, kept) as comparable:
            yield LosesItsServer(comparable, self._server)


def runs_of(settings: Settings, experiment: str) -> dict[str, Run]:
    client = MlflowClient(tracking_uri(settings))
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


def test_a_server_that_dies_in_training_changes_no_byte_and_hears_all_of_it_later(
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
        trained = runs_of(settings, "mapet-pretrain")["pretrain mapet vit_demo, kclip, 2 epochs, seed 0"]
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

    retry_queue = RetryQueue("the server")
    for number in range(4):
        retry_queue.put(message(number))
    assert told == [0], "no second try before its time"
    caplog.set_level(logging.WARNING, "mapet.tracker")
    retry_queue.close()
    assert told == [0, 1, 3]
    assert "the server does not take message 2 of a run (not this one)" in caplog.text


def open_a_run(root: Path) -> None:
    with mlflow_run("killed while it made the database", Settings(data_root=root)):
        pass


def test_a_process_killed_while_making_the_database_leaves_none_for_the_next_to_find(tmp_path: Path) -> None:
    drawn = random.Random(0)
    folder = Settings(data_root=tmp_path).layout.tracking_database.parent
    process = server().Process(target=open_a_run, args=(tmp_path,))
    process.start()
    while process.is_alive() and not any(path.stat().st_size for path in folder.glob("*.tmp")):
        time.sleep(0.001)
    time.sleep(drawn.uniform(0, 1))  # making it takes seconds
    process.kill()
    process.join()
    assert not (folder / "mlflow.db").exists(), "a part of the tables would be there, and never the rest"
    open_a_run(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["mlflow.db"]


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, and a data root `data` that has their tokens and a run in MLflow."""
    folder = tmp_path_factory.mktemp("used")
    make_photos(folder / "photos", train=8, val=2)
    assert build_of_pixels(folder, folder / "data").code == 0
    return folder


@pytest.fixture
def settings(used: Path, tmp_path: Path) -> Settings:
    return Settings(data_root=shutil.copytree(used / "data", tmp_path / "data"))


def build_of_pixels(folder: Path, root: Path) -> Said:
    """Return the command, for photographs in `folder`."""
    words = ("tokenizer=pixels", "pixels.image_size=64", "pixels.patch_size=16", "features.sample_fraction=0.5")
    machine = (f"settings.data_root={root}", "settings.device=cpu", "settings.workers=0")
    own = (f"images.path={folder / 'photos'}", "codebook.vocabulary=8", *words, *machine)
    return mapet(root.parent / "said", "kclip-build", "folder", *own)


def damage_every_page(database: Path) -> None:
    whole = database.read_bytes()
    database.write_bytes(whole[:4096] + random.Random(0).randbytes(len(whole) - 4096))


def make_newer(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'of a newer MLflow'")


def turn_into_a_folder(database: Path) -> None:
    database.unlink()
    database.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        lambda database: database.write_bytes(b"no database" * 1000),
        damage_every_page,
        make_newer,
        turn_into_a_folder,
    ],
    ids=["no database", "damaged pages", "a newer schema", "a folder"],
)
def test_a_database_that_cannot_be_used_is_one_sentence_and_the_run_goes_on(
    damage: Callable[[Path], None], used: Path, settings: Settings
) -> None:
    damage(settings.layout.tracking_database)
    said = build_of_pixels(used, settings.data_root)
    assert said.code == 0
    assert "Every stage was cached" in said.out
    usual = re.compile(r"\[|.*: cached |.*: understood as images: ")
    [sentence] = [line for line in said.err.splitlines() if not usual.match(line)]
    assert sentence.startswith(f"MLflow's database {settings.layout.tracking_database} cannot be used (")


def test_a_locked_database_leaves_a_run_untracked(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_database, "_SECONDS_FOR_OTHERS", 0.1)
    with closing(sqlite3.connect(settings.layout.tracking_database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with mlflow_run("meanwhile", settings) as run:
            run.metrics({"loss": 1.0})
            assert run.id == ""
    [warning] = [one.message for one in caplog.records]
    assert "database is locked" in warning
    with mlflow_run("afterwards", settings) as run:
        assert run.id


def test_an_empty_file_in_place_of_the_database_is_made_one(settings: Settings) -> None:
    settings.layout.tracking_database.write_bytes(b"")
    with mlflow_run("first", settings) as run:
        assert run.id


def test_an_experiment_that_was_deleted_is_restored_and_said_once(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    client = MlflowClient(tracking_uri(settings))
    experiment = client.get_experiment_by_name("mapet")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with mlflow_run("afterwards", settings) as run, run.child("a stage") as child:
        child.metrics({"loss": 1.0})
    [warning] = [one.message for one in caplog.records]
    assert "'mapet' was deleted; it is restored" in warning
    found = runs_of(settings, "mapet")
    assert found["a stage"].data.metrics == {"loss": 1.0}
    assert found["afterwards"].info.status == "FINISHED"


def test_what_is_deleted_in_mid_run_is_restored_and_said_once(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    client = MlflowClient(tracking_uri(settings))
    with mlflow_run("deleted", settings) as run:
        client.delete_run(run.id)
        run.params({"one": 1})
        experiment = client.get_run(run.id).info.experiment_id
        client.delete_experiment(experiment)
        run.tags({"two": "2"})
        with run.child("a stage") as child:
            client.delete_experiment(experiment)
            child.params({"three": 3})
    found = runs_of(settings, "mapet")
    assert found["deleted"].data.params == {"one": "1"}
    assert found["deleted"].data.tags["two"] == "2"
    assert found["a stage"].data.params == {"three": "3"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert [one.message.partition(" was deleted")[0] for one in caplog.records] == [
        "MLflow's run 'deleted'",
        "MLflow's experiment 'mapet'",
        "MLflow's experiment 'mapet'",
    ]


def test_a_run_that_is_gone_for_good_is_two_sentences(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with mlflow_run("gone", settings) as run:
        with closing(sqlite3.connect(settings.layout.tracking_database)) as database, database:
            for table in ("tags", "runs"):
                database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (run.id,))
        for number in range(20):
            run.params({f"option {number}": number})
    first, last = (one.message for one in caplog.records)
    assert "does not take parameters of gone" in first
    assert "did not take messages of these runs: gone (21)" in last


class Answers(BaseHTTPRequestHandler):
    """Answers everything with the status that its server has."""

    def do_GET(self) -> None:
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize(("status", "said"), [(401, "let us in"), (403, "let us in"), (500, "answer")])
def test_a_named_server_that_refuses_is_one_sentence_before_anything_is_built(
    status: int, said: str, tmp_path: Path
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.status = status  # type: ignore[attr-defined]
        Thread(target=server.serve_forever, daemon=True).start()
        settings = Settings(data_root=tmp_path, tracking_uri=f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(PipelineError, match=rf"does not {said} \(.*{status}.*unset MAPET_TRACKING_URI"):
            mlflow_run("x", settings).__enter__()
        server.shutdown()
