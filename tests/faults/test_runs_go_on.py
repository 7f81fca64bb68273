"""A pre-training that is killed and goes on, here or on another machine, is one run in MLflow with one curve."""

import logging
import os
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from sqlite3 import connect

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.engine.kept_run import KeptRun
from pipeline.engine.mlflow_tracker import mlflow_run, tracking_uri
from pipeline.engine.settings import Settings
from pipeline.engine.tracker import TrackedRun
from pipeline.training.history import read_history
from storage.artifact import BUILDING, Artifact
from storage.remote_folder import RemoteFolder
from tests.mlflow_server import MlflowServer
from tests.stages import TokenizedImages
from tests.trainings import small_pretraining, tokenize_photos

KILLED_AT = 8  # of twelve steps; the last checkpoint is of step 6
LENGTH = ("training.epochs=12",)


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> TokenizedImages:
    return tokenize_photos(tmp_path_factory.mktemp("tokenized"), train=12, val=3)


@pytest.fixture(scope="module")
def begun(tokenized: TokenizedImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root in which a pre-training was killed."""
    root = tmp_path_factory.mktemp("begun") / "data"
    begin_and_be_killed(tokenized, Settings(data_root=root))
    return root


@pytest.fixture
def settings(begun: Path, tmp_path: Path) -> Settings:
    return Settings(data_root=shutil.copytree(begun, tmp_path / "data"))


class IsKilled:
    """The real run, whose process is killed once all is told of a step between two checkpoints."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run

    def __getattr__(self, name: str) -> object:
        return getattr(self._run, name)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self._run.metrics(values, step)
        if step >= KILLED_AT:
            self._run.flush()  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def child(self, name: str) -> Iterator["IsKilled"]:
        with self._run.child(name) as child:
            yield IsKilled(child)

    @contextmanager
    def comparable(self, name: str, group: str, kept: KeptRun) -> Iterator["IsKilled"]:
        with self._run.comparable(name, group, kept) as comparable:
            yield IsKilled(comparable)


def begin_and_be_killed(built: TokenizedImages, settings: Settings, host: str = "") -> None:
    """Begin and be killed. `host`: what the machine is called, if it is another one."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.preload"])
    process = context.Process(target=_begin, args=(built, settings, host))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


def _begin(built: TokenizedImages, settings: Settings, host: str) -> None:
    if host:
        socket.gethostname = lambda: host
    with mlflow_run("killed", settings) as run:
        _pretrain(built, settings, IsKilled(run))


def _pretrain(built: TokenizedImages, settings: Settings, run: TrackedRun) -> Artifact:
    machine = {"checkpoint_steps": 3, "remote_root": settings.remote_root}
    return small_pretraining(built, settings.data_root, *LENGTH, run=run, **machine).artifact


def go_on(built: TokenizedImages, settings: Settings) -> Artifact:
    with mlflow_run("goes on", settings) as run:
        return _pretrain(built, settings, run)


def runs_of(settings: Settings, experiment: str) -> list[Run]:
    client = MlflowClient(tracking_uri(settings))
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def trainings(settings: Settings) -> list[Run]:
    return runs_of(settings, "mapet-pretrain")


def statuses(settings: Settings) -> dict[str, str]:
    """Return the status of each run of a command."""
    commands = [run for run in runs_of(settings, "mapet") if "mlflow.parentRunId" not in run.data.tags]
    return {run.info.run_name: run.info.status for run in commands}


def require_one_curve(settings: Settings, run: Run, made: Artifact) -> None:
    """Require one run: finished, the artifact's, all of its history and each point once."""
    assert (run.info.status, run.info.run_id) == ("FINISHED", made.notes["tracking_run"])
    client = MlflowClient(tracking_uri(settings))
    points = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    told = Counter((name, point.step) for name in points for point in points[name])
    assert set(told.values()) == {1}
    measured = read_history(made.path)
    assert {(name, entry["step"]) for entry in measured for name in entry if name != "step"} <= told.keys()
    curve = {entry["step"]: entry["loss"] for entry in measured if "loss" in entry}
    assert {point.step: point.value for point in points["loss"]} == pytest.approx(curve)


def test_a_killed_pretraining_goes_on_in_its_run_of_mlflow(
    tokenized: TokenizedImages, settings: Settings, tmp_path: Path
) -> None:
    [killed] = trainings(settings)
    told = MlflowClient(tracking_uri(settings)).get_metric_history(killed.info.run_id, "loss")
    assert max(point.step for point in told) == KILLED_AT
    assert max(settings.data_root.glob("pretrain/*.partial/checkpoints/*.json")).stem == "step-00000006"
    assert killed.info.status == "RUNNING"
    made = go_on(tokenized, settings)
    [run] = trainings(settings)
    assert run.info.run_id == killed.info.run_id
    require_one_curve(settings, run, made)
    assert "error" not in run.data.tags
    others = {one.info.run_id: one for one in runs_of(settings, "mapet")}
    stage = others[run.data.tags["part_of_run"]]
    assert others[stage.data.tags["mlflow.parentRunId"]].info.run_name == "goes on"
    assert statuses(settings) == {"killed": "KILLED", "goes on": "FINISHED"}
    assert made.digest == small_pretraining(tokenized, tmp_path / "undisturbed", *LENGTH).artifact.digest
    assert BUILDING not in made.files
    assert not (made.path / BUILDING).exists()


@pytest.mark.parametrize("is_marked", [False, True], ids=["left RUNNING", "marked as KILLED there"])
def test_a_machine_that_goes_on_with_anothers_training_goes_on_in_its_run(
    is_marked: bool, tokenized: TokenizedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = f"sqlite:///{tmp_path}/mlflow.db"
    shared = {"remote_root": f"file://{tmp_path}/remote", "tracking_uri": database}
    first, second = (Settings(data_root=tmp_path / name, **shared) for name in ("first", "second"))
    begin_and_be_killed(tokenized, first, host="the first machine")
    [killed] = trainings(first)
    assert (killed.data.tags["host"], killed.info.status) == ("the first machine", "RUNNING")
    if is_marked:
        with monkeypatch.context() as there:
            there.setattr(socket, "gethostname", lambda: "the first machine")
            with mlflow_run("next", first):
                assert [run.data.tags["error"][:19] for run in trainings(first)] == ["its process is gone"]
    made = go_on(tokenized, second)
    [run] = trainings(second)
    assert "error" not in run.data.tags
    assert run.info.run_id == killed.info.run_id
    require_one_curve(second, run, made)
    assert run.data.tags["host"] == socket.gethostname()
    assert {one.info.status for one in runs_of(second, "mapet")} == {"KILLED", "FINISHED"}, "none is left RUNNING"
    assert statuses(second) == {
        "killed": "KILLED",
        "goes on": "FINISHED",
        **({"next": "FINISHED"} if is_marked else {}),
    }
    assert not [name for name in RemoteFolder(shared["remote_root"]).sizes() if BUILDING in name]
    with mlflow_run("takes it", first) as run_of_first:
        taken = _pretrain(tokenized, first, run_of_first)
    assert taken.notes["tracking_run"] == run.info.run_id
    assert len(trainings(first)) == 1


def in_another_database(settings: Settings) -> Settings:
    return settings.model_copy(update={"tracking_uri": f"sqlite:///{settings.data_root}/another.db"})


def delete_the_run(settings: Settings) -> Settings:
    [run] = trainings(settings)
    MlflowClient(tracking_uri(settings)).delete_run(run.info.run_id)
    return settings


def lose_the_run(settings: Settings) -> Settings:
    [run] = trainings(settings)
    with closing(connect(settings.layout.tracking_database)) as database, database:
        for table in ("tags", "params", "metrics", "latest_metrics", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (run.info.run_id,))
    return settings


@pytest.mark.parametrize("lose", [in_another_database, delete_the_run, lose_the_run])
def test_a_run_that_mlflow_does_not_have_is_said_once_and_a_new_one_has_its_curve(
    lose: Callable[[Settings], Settings],
    tokenized: TokenizedImages,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    [killed] = trainings(settings)
    settings = lose(settings)
    made = go_on(tokenized, settings)
    [run] = trainings(settings)
    assert run.info.run_id != killed.info.run_id
    require_one_curve(settings, run, made)
    [said] = [one.message for one in caplog.records if one.levelno >= logging.WARNING]
    assert f"was begun in the run {killed.info.run_id}, which MLflow at " in said


def test_a_training_whose_run_is_not_known_any_more_begins_a_new_one(
    tokenized: TokenizedImages, settings: Settings
) -> None:
    [killed] = trainings(settings)
    [kept] = settings.data_root.glob(f"pretrain/*.partial/{BUILDING}")
    kept.write_bytes(b"\xff")
    made = go_on(tokenized, settings)
    [run] = [run for run in trainings(settings) if run.info.run_id != killed.info.run_id]
    require_one_curve(settings, run, made)
    assert sorted(run.info.status for run in trainings(settings)) == ["FINISHED", "KILLED"]


def test_a_run_that_goes_on_is_ended_by_no_other_and_taken_by_none(settings: Settings) -> None:
    [killed] = trainings(settings)
    [partial] = settings.data_root.glob("pretrain/*.partial")
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.preload"])
    told = context.Event()
    process = context.Process(target=_stay, args=(settings, partial, told))
    process.start()
    try:
        assert told.wait(120)
        with mlflow_run("next", settings) as run:
            assert [one.info.status for one in trainings(settings)] == ["RUNNING"]
            with run.comparable("the same", "pretrain", KeptRun(partial)) as another:
                assert another.id != killed.info.run_id
    finally:
        process.kill()
        process.join()


def _stay(settings: Settings, partial: Path, told: Event) -> None:
    with mlflow_run("goes on", settings) as run, run.comparable("training", "pretrain", KeptRun(partial)):
        told.set()
        time.sleep(600)


def test_a_training_that_goes_on_while_its_server_is_away_goes_on_in_its_run_later(tmp_path: Path) -> None:
    kept = KeptRun(tmp_path)
    with MlflowServer(tmp_path / "mlflow") as server:
        settings = Settings(data_root=tmp_path, tracking_uri=server.url)
        with mlflow_run("first", settings) as run, run.comparable("training", "pretrain", kept) as training:
            training.params({"option": 1})
            for step in (1, 2, 3):
                training.metrics({"loss": 1 / step}, step)
        with mlflow_run("goes on", settings) as run:
            server.down()
            with run.comparable("training", "pretrain", kept) as again:
                again.params({"option": 1})
                for step in (2, 3, 4):
                    again.metrics({"loss": 1 / step}, step)
                assert again.id == ""
            server.up()
        [found] = trainings(settings)
        points = MlflowClient(server.url).get_metric_history(found.info.run_id, "loss")
    assert (again.id, found.info.run_id, found.info.status) == (training.id, training.id, "FINISHED")
    assert [point.step for point in points] == [1, 2, 3, 4]
