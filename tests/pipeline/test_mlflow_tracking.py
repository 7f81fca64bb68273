"""Runs in a real MLflow database: parents, children, metrics, inputs, and the link from a cache hit to its maker."""

import shutil
import socket
import time
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.synchronize import Event
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.engine.errors import PipelineError
from pipeline.engine.kept_run import KeptRun
from pipeline.engine.mlflow_tracker import mlflow_run, tracking_uri
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from storage.artifact import read_artifact
from tests.builds import make_photos, small_config
from tests.forked import server
from tests.stages import kclip_build


def runs(settings: Settings) -> list[Run]:
    client = MlflowClient(tracking_uri(settings))
    experiment = client.get_experiment_by_name(settings.experiment)
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, list[Run]]:
    """The same build twice in one data root, and the MLflow runs of both."""
    root = tmp_path_factory.mktemp("tracked")
    config = small_config(make_photos(root / "photos", train=8, val=2), root / "clip")
    settings = Settings(data_root=root / "data", device="cpu", workers=0, batch_size=4)
    for _ in range(2):
        with Workspace(settings).tracked("kclip-build test", config) as workspace:
            kclip_build(config, workspace)
    return settings, runs(settings)


STAGES = ["index_images", "extract_features", "fit_codebook", "tokenize_images", "report"]


def test_a_build_is_one_parent_run_with_one_child_per_stage(tracked: tuple[Settings, list[Run]]) -> None:
    _, found = tracked
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_name for run in parents] == ["kclip-build test"] * 2
    assert parents[0].data.params["codebook.vocabulary"] == "32"
    assert parents[0].data.metrics["tokenize_images/vocabulary"] == 32
    assert parents[0].data.metrics == parents[1].data.metrics
    for parent in parents:
        children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert [run.info.run_name for run in children] == STAGES
        assert {run.info.status for run in children} == {"FINISHED"}


def test_stages_log_fingerprint_path_inputs_and_numbers(tracked: tuple[Settings, list[Run]]) -> None:
    _, found = tracked
    first = {run.info.run_name: run for run in found[1:6]}
    codebook, features = first["fit_codebook"], first["extract_features"]
    artifact = read_artifact(Path(codebook.data.tags["artifact"]))
    assert codebook.data.tags["fingerprint"] == artifact.fingerprint
    assert codebook.data.tags["cached"] == "false"
    assert codebook.data.metrics["inertia"] == pytest.approx(artifact.summary["inertia"])
    [given] = codebook.inputs.dataset_inputs
    assert given.dataset.name == "features"
    assert features.data.tags["digest"].startswith(given.dataset.digest)
    assert features.data.metrics["images_per_second"] > 0


def test_kmeans_logs_every_iteration(tracked: tuple[Settings, list[Run]]) -> None:
    settings, found = tracked
    run = next(run for run in found if run.info.run_name == "fit_codebook")
    history = MlflowClient(tracking_uri(settings)).get_metric_history(run.info.run_id, "perplexity")
    steps = [metric.step for metric in history if metric.step > 0]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 2


def test_a_cache_hit_links_to_the_run_that_made_the_artifact(tracked: tuple[Settings, list[Run]]) -> None:
    _, found = tracked
    made = {run.info.run_name: run.info.run_id for run in found[1:6]}
    hits = {run.info.run_name: run for run in found[7:]}
    assert list(hits) == STAGES
    for stage, run in hits.items():
        assert run.data.tags["cached"] == "true"
        assert run.data.tags["made_by_run"] == made[stage]


def test_the_report_is_kept_with_its_run(tracked: tuple[Settings, list[Run]]) -> None:
    settings, found = tracked
    run = next(run for run in found if run.info.run_name == "report")
    files = MlflowClient(tracking_uri(settings)).list_artifacts(run.info.run_id)
    assert "report.html" in [file.path for file in files]
    assert settings.layout.tracking_artifacts.is_dir()


def test_a_failed_stage_and_its_parent_are_marked_failed_with_the_reason(
    tracked: tuple[Settings, list[Run]], tmp_path: Path
) -> None:
    settings, _ = tracked
    config = small_config(tmp_path / "nowhere", tmp_path / "clip")
    with (
        pytest.raises(PipelineError, match="does not exist"),
        Workspace(settings).tracked("fails", config) as workspace,
    ):
        kclip_build(config, workspace)
    [parent] = [run for run in runs(settings) if run.info.run_name == "fails"]
    assert parent.info.status == "FAILED"
    assert "does not exist" in parent.data.tags["error"]


def test_ctrl_c_marks_the_run_killed(tracked: tuple[Settings, list[Run]]) -> None:
    settings, _ = tracked
    with pytest.raises(KeyboardInterrupt), mlflow_run("interrupted", settings):
        raise KeyboardInterrupt
    [run] = [run for run in runs(settings) if run.info.run_name == "interrupted"]
    assert run.info.status == "KILLED"


def _stay_in_runs(root: Path, name: str, told: Event) -> None:
    with (
        mlflow_run(name, Settings(data_root=root)) as run,
        run.comparable(f"{name}'s training", "pretrain", KeptRun(root / name)) as training,
    ):
        training.metrics({"loss": 1.0}, 7)
        training.flush()  # type: ignore[attr-defined]
        told.set()
        time.sleep(600)


def test_runs_of_a_process_that_was_killed_are_ended_by_the_next_run_and_no_others(tmp_path: Path) -> None:
    settings = Settings(data_root=tmp_path)
    client = MlflowClient(tracking_uri(settings))
    context = server()
    processes = {}
    for name in ("killed", "at work"):
        told = context.Event()
        processes[name] = context.Process(target=_stay_in_runs, args=(tmp_path, name, told))
        processes[name].start()
        assert told.wait(120)
    try:
        processes["killed"].kill()
        processes["killed"].join()
        [experiment] = {run.info.experiment_id for run in runs(settings)}
        gone = {"host": f"not {socket.gethostname()}", "process": str(processes["killed"].pid)}
        client.create_run(experiment, run_name="on another host", tags=gone)
        gone["host"] = socket.gethostname()
        client.create_run(experiment, run_name="of another program", tags={"host": gone["host"]})
        client.create_run(experiment, run_name="killed long ago", start_time=1_000, tags=gone)
        client.create_run(
            experiment,
            run_name="before the process at work got its number",
            start_time=1_000,
            tags={**gone, "process": str(processes["at work"].pid)},
        )
        with mlflow_run("next", settings):
            found = {run.info.run_name: run for run in runs(settings)}
            trainings = client.get_experiment_by_name("mapet-pretrain")
            assert trainings is not None
            found |= {run.info.run_name: run for run in client.search_runs([trainings.experiment_id])}
    finally:
        for process in processes.values():
            process.kill()
            process.join()
    assert {name: run.info.status for name, run in found.items()} == {
        "killed": "KILLED",
        "killed's training": "KILLED",
        "killed long ago": "KILLED",
        "before the process at work got its number": "KILLED",
        "at work": "RUNNING",
        "at work's training": "RUNNING",
        "on another host": "RUNNING",
        "of another program": "RUNNING",
        "next": "RUNNING",
    }
    training = found["killed's training"]
    [point] = client.get_metric_history(training.info.run_id, "loss")
    assert training.info.end_time == point.timestamp
    assert "its process is gone" in training.data.tags["error"]


def _open_a_run(root: Path) -> None:
    with mlflow_run("together", Settings(data_root=root)) as run:
        run.metrics({"one": 1.0})


def test_processes_that_start_together_do_not_break_a_new_database(tmp_path: Path) -> None:
    processes = [server().Process(target=_open_a_run, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [run.data.metrics["one"] for run in runs(Settings(data_root=tmp_path))] == [1.0, 1.0, 1.0]


def test_a_tracking_server_that_is_down_is_one_sentence(tmp_path: Path) -> None:
    settings = Settings(data_root=tmp_path, tracking_uri="http://127.0.0.1:9")
    with (
        pytest.raises(PipelineError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer"),
        mlflow_run("x", settings),
    ):
        pass


class Asked(BaseHTTPRequestHandler):
    """Answers "not found" and remembers with which credentials it was asked."""

    credentials: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        scheme, _, encoded = self.headers.get("Authorization", "").partition(" ")
        self.credentials.append(f"{scheme} {b64decode(encoded).decode()}")
        self.send_response(404)
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None: ...


def test_a_password_in_the_servers_address_reaches_the_server_and_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "another")  # and is put back
    with ThreadingHTTPServer(("127.0.0.1", 0), Asked) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1:{server.server_port}"
        settings = Settings(data_root=tmp_path, tracking_uri=f"http://someone:a%40b@{place}")
        with pytest.raises(PipelineError) as refused, mlflow_run("x", settings):
            pass
        server.shutdown()
    assert set(Asked.credentials) == {"Basic someone:a@b"}
    assert f"MLflow at http://{place} does not answer" in str(refused.value)
    assert "someone" not in str(refused.value)


def test_long_curves_and_many_parameters_go_out_in_pieces_that_mlflow_takes(tmp_path: Path) -> None:
    settings = Settings(data_root=tmp_path)
    with mlflow_run("long", settings) as run:
        run.params({f"option.{number}": number for number in range(150)})
        for step in range(2100):
            run.metrics({"loss": 1 / (1 + step)}, step)
    [found] = runs(settings)
    assert len(found.data.params) == 150
    history = MlflowClient(tracking_uri(settings)).get_metric_history(found.info.run_id, "loss")
    assert sorted(point.step for point in history) == list(range(2100))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root whose MLflow has a run of our own, with a file, and one of an experiment of somebody else's."""
    root = tmp_path_factory.mktemp("original") / "data"
    settings = Settings(data_root=root)
    kept = KeptRun(root / "nowhere")
    with mlflow_run("first", settings) as run, run.comparable("trained", "pretrain", kept) as trained:
        run.file(_written(root / "one.txt"))
        trained.file(_written(root / "two.txt"))
    client = MlflowClient(tracking_uri(settings))
    by_the_server = client.create_experiment("of the server", f"{settings.layout.tracking_artifacts.as_uri()}/3")
    client.log_artifact(client.create_run(by_the_server).info.run_id, str(_written(root / "three.txt")))
    client.create_experiment("elsewhere", "file:///scratch/files")
    return root


def _written(path: Path) -> Path:
    path.write_text(path.name)
    return path


def _files_of(settings: Settings) -> dict[str, str]:
    """Return the text of every file of every run, as MLflow finds it; by name."""
    client = MlflowClient(tracking_uri(settings))
    found = {}
    for run in client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]):
        for file in client.list_artifacts(run.info.run_id):
            found[file.path] = Path(client.download_artifacts(run.info.run_id, file.path)).read_text()
    return found


def _tree(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_a_data_root_that_was_copied_or_moved_keeps_its_files_with_it(how: str, original: Path, tmp_path: Path) -> None:
    first, other = tmp_path / "first" / "data", Settings(data_root=tmp_path / "where it lies now")
    shutil.copytree(original, first)
    with mlflow_run("in the copy", Settings(data_root=first)):  # which makes it the home of its files
        pass
    shutil.copytree(first, other.data_root) if how == "copied" else first.rename(other.data_root)
    before = _tree(tmp_path / "first")
    kept = KeptRun(tmp_path / "nowhere")
    with mlflow_run("new", other) as run, run.comparable("new training", "pretrain", kept) as trained:
        run.file(_written(tmp_path / "four.txt"))
        trained.file(_written(tmp_path / "five.txt"))
    assert _tree(tmp_path / "first") == before
    assert first.exists() == (how == "copied")
    assert _files_of(other) == {f"{name}.txt": f"{name}.txt" for name in ("one", "two", "three", "four", "five")}
    locations = {one.name: one.artifact_location for one in MlflowClient(tracking_uri(other)).search_experiments()}
    home = other.layout.tracking_artifacts.as_uri()
    assert locations["of the server"] == f"{home}/3"
    assert locations["elsewhere"] == "file:///scratch/files"


def test_another_name_of_the_same_data_root_changes_no_address(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for name in ("data", "link"):
        settings = Settings(data_root=tmp_path / name)
        with mlflow_run(name, settings):
            locations = {one.artifact_location for one in MlflowClient(tracking_uri(settings)).search_experiments()}
        assert (tmp_path / "data" / "mlflow" / "artifacts").as_uri() in locations
