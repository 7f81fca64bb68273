"""The flow as its users run it: a real server, a real worker, deployments of the presets, a small demo."""

import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass

import pytest

from pipeline.configuration.overrides import apply_overrides
from tests.flows.conftest import Worker
from tests.flows.prefect_server import FlowRun, wait_for
from tests.flows.small_build import DEPLOYMENT, SMALL, STAGES, as_parameter, mlflow_runs, states

pytestmark = pytest.mark.servers

# Three runs in one process, called from Python: Prefect, torch and MLflow take ten seconds to import.
SCRIPT = """\
import json, os, sys
from flows.kclip_build import kclip_build
from pipeline.configuration.config import KClipBuildConfig
small, nowhere = (KClipBuildConfig(**config) for config in json.loads(sys.argv[1]))
states = [kclip_build(small, return_state=True), kclip_build(nowhere, return_state=True)]
os.environ["MAPET_TRACKING_URI"] = "http://user:hunter2@127.0.0.1:9"
states.append(kclip_build(small, return_state=True))
print(json.dumps([str(state.state_details.flow_run_id) for state in states]))
"""


@dataclass(frozen=True)
class ScriptRuns:
    """The flow runs of `SCRIPT`."""

    cached: FlowRun
    images_missing: FlowRun
    tracking_down: FlowRun


@pytest.fixture(scope="module")
def script_runs(worker: Worker, first_runs: tuple[FlowRun, FlowRun]) -> ScriptRuns:
    nowhere = apply_overrides(SMALL, ["images.kind=folder", "images.path=/nowhere/at/all"])
    configs = json.dumps([as_parameter(SMALL), as_parameter(nowhere)])
    done = worker.server.python("-c", SCRIPT, configs, folder=worker.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return ScriptRuns(*(worker.server.ended(run) for run in json.loads(done.stdout.splitlines()[-1])))


@pytest.fixture(scope="module")
def run_after_damage(worker: Worker, first_runs: tuple[FlowRun, FlowRun], script_runs: ScriptRuns) -> FlowRun:
    """A run after one byte of the tokens was changed and the codebook was deleted."""
    tokens, codebook = (worker.made(first_runs[0], stage) for stage in ("tokenize_images", "fit_codebook"))
    largest = max((path for path in tokens.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    shutil.rmtree(codebook)
    return worker.server.ended(worker.server.start(DEPLOYMENT, as_parameter(SMALL)))


def test_two_runs_at_once_build_each_artifact_once(worker: Worker, first_runs: tuple[FlowRun, FlowRun]) -> None:
    assert [run["state"]["type"] for run in first_runs] == ["COMPLETED", "COMPLETED"]
    ids = {run["id"] for run in first_runs}
    runs = mlflow_runs(worker.data_root)
    parents = {run.id for run in runs if run.tags.get("prefect.flow_run") in ids}
    of_both = [run for run in runs if run.tags.get("mlflow.parentRunId") in parents]

    assert len(parents) == 2
    assert Counter(run.name for run in of_both) == dict.fromkeys(STAGES, 2)
    assert Counter(run.name for run in of_both if run.tags["cached"] == "false") == dict.fromkeys(STAGES, 1)


def test_every_stage_is_a_task_named_after_it(worker: Worker, first_runs: tuple[FlowRun, FlowRun]) -> None:
    tasks = worker.server.stages_of(first_runs[0])

    assert [task["name"] for task in tasks.values()] == [f"{stage}-demo" for stage in STAGES]
    assert re.fullmatch(r"demo-\d{8}-\d{6}", first_runs[0]["name"])


def test_tasks_are_joined_by_the_artifacts_they_hand_on(worker: Worker, first_runs: tuple[FlowRun, FlowRun]) -> None:
    tasks = worker.server.stages_of(first_runs[0])

    upstream = {item["id"] for item in tasks["fit_codebook"]["task_inputs"]["wait_for"]}
    assert upstream == {tasks["extract_features"]["id"]}


def test_artifacts_lie_in_the_folder_of_the_worker(worker: Worker, first_runs: tuple[FlowRun, FlowRun]) -> None:
    for stage in STAGES:
        made = worker.made(first_runs[0], stage)
        assert made.parent == worker.data_root / stage
        assert (made / "artifact.json").is_file()


def test_mlflow_holds_the_run_and_its_stages_with_fingerprints(
    worker: Worker, first_runs: tuple[FlowRun, FlowRun]
) -> None:
    runs = mlflow_runs(worker.data_root)
    (parent,) = (run for run in runs if run.tags.get("prefect.flow_run") == first_runs[0]["id"])
    children = [run for run in runs if run.tags.get("mlflow.parentRunId") == parent.id]

    assert parent.name.startswith("kclip-build demo ")  # and in what it differs from the preset
    assert parent.status == "FINISHED"
    assert [child.name for child in children] == STAGES
    for child in children:
        assert child.status == "FINISHED"
        assert (worker.data_root / child.name / child.tags["fingerprint"] / "artifact.json").is_file()


def test_a_second_run_finds_every_stage_cached(worker: Worker, script_runs: ScriptRuns) -> None:
    assert states(worker.server.stages_of(script_runs.cached)) == dict.fromkeys(STAGES, "Cached")
    assert "every stage was cached" in script_runs.cached["state"]["message"]


def test_the_pipelines_log_lines_are_in_the_runs_logs(worker: Worker, script_runs: ScriptRuns) -> None:
    logs = worker.server.logs_of(script_runs.cached, until="report: cached")

    for stage in STAGES:
        assert f"{stage}: cached {worker.data_root / stage}" in logs


def test_the_report_and_a_table_of_the_stages_are_in_prefect(worker: Worker, script_runs: ScriptRuns) -> None:
    of_run = {"artifacts": {"flow_run_id": {"any_": [script_runs.cached["id"]]}}}
    data = {artifact["key"]: artifact["data"] for artifact in worker.server.post("/artifacts/filter", of_run)}

    assert str(worker.data_root / "report") in data["kclip-build-report"]
    assert all(stage in data["kclip-build-stages"] for stage in STAGES)


def test_what_was_damaged_or_deleted_is_rebuilt_and_nothing_else(worker: Worker, run_after_damage: FlowRun) -> None:
    logs = worker.server.logs_of(run_after_damage, until="report: cached")

    rebuilt = dict.fromkeys(("fit_codebook", "tokenize_images"), "Completed")
    assert states(worker.server.stages_of(run_after_damage)) == dict.fromkeys(STAGES, "Cached") | rebuilt
    assert "built: fit_codebook, tokenize_images" in run_after_damage["state"]["message"]
    assert re.search(r"fit_codebook: building, \S+ is not there", logs)
    assert re.search(r"tokenize_images: \S+: the bytes changed", logs)


def test_a_users_mistake_fails_the_run_with_one_sentence(worker: Worker, script_runs: ScriptRuns) -> None:
    run = script_runs.images_missing
    message = run["state"]["message"]

    assert run["state"]["type"] == "FAILED"
    assert message.startswith("images.path=/nowhere/at/all does not exist")
    assert "\n" not in message
    assert "Traceback" not in message
    assert worker.server.logs_of(run, until="Finished stages and shards are kept")


def test_a_failed_run_is_failed_in_mlflow_too(worker: Worker, script_runs: ScriptRuns) -> None:
    failed = script_runs.images_missing
    (parent,) = (run for run in mlflow_runs(worker.data_root) if run.tags.get("prefect.flow_run") == failed["id"])

    assert parent.status == "FAILED"
    assert parent.tags["error"] == failed["state"]["message"]


def test_no_password_reaches_prefect(worker: Worker, script_runs: ScriptRuns) -> None:
    run = script_runs.tracking_down

    assert run["state"]["type"] == "FAILED"
    assert "http://127.0.0.1:9 does not answer" in run["state"]["message"]
    assert "hunter2" not in run["state"]["message"] + worker.server.logs_of(run, until="Finished stages")


def test_a_cancelled_run_is_killed_in_mlflow_and_keeps_what_is_done(worker: Worker, run_after_damage: FlowRun) -> None:
    slow = apply_overrides(SMALL, ["demo_clip.seed=1", "demo_clip.epochs=100000"])
    run_id = worker.server.start(DEPLOYMENT, as_parameter(slow))
    begun = worker.data_root / "train_demo_clip"
    wait_for("the start of the training", lambda: list(begun.glob("*.partial")), 120)
    cancelled = worker.server.prefect("flow-run", "cancel", run_id)
    assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr

    assert worker.server.ended(run_id)["state"]["type"] == "CANCELLED"

    def statuses() -> set[str] | None:
        runs = mlflow_runs(worker.data_root)
        (parent,) = (run for run in runs if run.tags.get("prefect.flow_run") == run_id)
        found = {run.status for run in runs if parent.id in (run.id, run.tags.get("mlflow.parentRunId"))}
        return found if "RUNNING" not in found else None

    assert wait_for("the end of the MLflow runs", statuses, 30) == {"FINISHED", "KILLED"}
    assert list(begun.glob("*.partial")), "what was begun is kept"
