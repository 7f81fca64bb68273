"""`make up`, `status`, `deploy` and `down`: real servers, a real worker, real HTTP, in a data root of their own."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flows.register import value_digest
from flows.services import catalogue
from flows.services.down import stop
from flows.services.processes import Service, ServiceFolder, Started, environment_of, groups_of, signal_groups
from flows.services.settings import WORK_POOL, ServiceSettings, divide
from pipeline.configuration.overrides import apply_overrides
from pipeline.configuration.presets import PRESETS
from tests.flows.prefect_server import PrefectServer, free_port, quiet_environment, wait_for
from tests.flows.small_build import DEPLOYMENT, SMALL, STAGES, as_parameter, mlflow_runs

servers = pytest.mark.servers

LONG_EPOCHS = 200  # of the small CLIP: longer than it takes to start a worker


@dataclass(frozen=True)
class Machine:
    """A folder in which the commands are called, with ports of its own; its data root is the default, `data`."""

    path: Path
    prefect_port: int
    mlflow_port: int

    @property
    def data_root(self) -> Path:
        return self.path / "data"

    @property
    def folder(self) -> ServiceFolder:
        return ServiceFolder(self.data_root / "services")

    @property
    def prefect(self) -> PrefectServer:
        url = f"http://127.0.0.1:{self.prefect_port}/api"
        return PrefectServer(url, quiet_environment(self.path / "home", url))

    def call(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Return `python -m flows.services words...`"""
        ports = {"MAPET_PREFECT_PORT": str(self.prefect_port), "MAPET_MLFLOW_PORT": str(self.mlflow_port)}
        return subprocess.run(
            [sys.executable, "-m", "flows.services", *words],
            cwd=self.path,
            env={**self.prefect.environment, **ports, **environment},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    def mlflow(self, method: str, path: str, **request: Any) -> httpx.Response:
        url = f"http://127.0.0.1:{self.mlflow_port}{path}"
        answer = httpx.request(method, url, timeout=60, trust_env=False, **request)
        assert answer.is_success, f"{url}: {answer.status_code} {answer.text}"
        return answer

    def pids(self) -> dict[str, int]:
        return {name: one.pid for name, one in self.folder.alive().items()}

    def processes(self) -> list[psutil.Process]:
        return self.folder.processes(catalogue.MLFLOW, catalogue.PREFECT, "worker-1")

    def clear(self) -> None:
        """Leave nothing behind, whatever a test did."""
        if self.folder.records():
            self.call("down", "--patience", "0")
        signal_groups(self.processes(), signal.SIGKILL)


@dataclass(frozen=True)
class Begun:
    machine: Machine
    said: str


def make_machine(path: Path) -> Machine:
    return Machine(path, free_port(), free_port())


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Machine]:
    """A machine on which nothing runs yet."""
    machine = make_machine(tmp_path)
    try:
        yield machine
    finally:
        machine.clear()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begun]:
    machine = make_machine(tmp_path_factory.mktemp("machine"))
    try:
        done = machine.call("up")
        assert done.returncode == 0, done.stdout + done.stderr
        yield Begun(machine, done.stdout)
    finally:
        machine.clear()


@pytest.fixture
def machine(begun: Begun) -> Machine:
    return begun.machine


@servers
def test_up_starts_both_servers_and_one_worker_and_says_where_they_are(begun: Begun) -> None:
    machine = begun.machine
    assert list(machine.pids()) == ["mlflow", "prefect", "worker-1"]
    assert f"http://127.0.0.1:{machine.prefect_port}" in begun.said
    assert f"http://127.0.0.1:{machine.mlflow_port}" in begun.said
    assert machine.prefect.get(f"/work_pools/{WORK_POOL}")["concurrency_limit"] == 1


@servers
def test_up_registers_every_preset_of_every_flow(machine: Machine) -> None:
    flows = {flow["id"]: flow["name"] for flow in machine.prefect.post("/flows/filter", {})}
    found = {(flows[one["flow_id"]], one["name"]) for one in machine.prefect.post("/deployments/filter", {})}
    assert found == {(flow, name) for flow, presets in PRESETS.items() for name in presets}


@servers
def test_up_again_starts_nothing(machine: Machine) -> None:
    before = machine.pids()
    done = machine.call("up")
    assert done.returncode == 0, done.stderr
    assert machine.pids() == before
    assert "started:" not in done.stdout
    assert done.stdout.count("runs already") == 3


@servers
def test_status_says_that_all_is_healthy(machine: Machine) -> None:
    done = machine.call("status")
    assert done.returncode == 0, done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["mlflow", "prefect", "worker-1"]
    assert done.stdout.count("healthy") == 3


@servers
def test_everything_listens_on_loopback_only(machine: Machine) -> None:
    connections = [one for process in machine.processes() for one in process.net_connections(kind="inet")]
    listening = {one.laddr for one in connections if one.status == psutil.CONN_LISTEN}
    assert {machine.prefect_port, machine.mlflow_port} <= {address.port for address in listening}
    assert {address.ip for address in listening} == {"127.0.0.1"}


@servers
def test_pages_of_other_sites_may_not_use_the_api(machine: Machine) -> None:
    def allowed(origin: str) -> str | None:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        url = f"{machine.prefect.url}/flow_runs/"
        return httpx.options(url, headers=asked, trust_env=False).headers.get("access-control-allow-origin")

    own = f"http://localhost:{machine.prefect_port}"
    assert (allowed("http://elsewhere.example"), allowed(own)) == (None, own)


@servers
def test_a_port_that_is_taken_is_refused_in_one_sentence(machine: Machine, idle: Machine) -> None:
    done = idle.call("up", MAPET_PREFECT_PORT=str(machine.prefect_port))
    assert done.returncode == 2
    assert done.stderr.startswith(f"mapet: error: port {machine.prefect_port} for prefect cannot be had (address")
    assert "MAPET_PREFECT_PORT=" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not idle.processes()


@servers
def test_a_deployment_runs_and_its_run_is_in_mlflow(machine: Machine) -> None:
    run = machine.prefect.run_by_command(DEPLOYMENT, config=as_parameter(SMALL))
    assert run["state"]["type"] == "COMPLETED", run["state"]

    experiment = machine.mlflow("GET", "/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "mapet"})
    query = {"experiment_ids": [experiment.json()["experiment"]["experiment_id"]]}
    found = machine.mlflow("POST", "/api/2.0/mlflow/runs/search", json=query).json()["runs"]
    tags = {one["info"]["run_id"]: {tag["key"]: tag["value"] for tag in one["data"]["tags"]} for one in found}
    [parent] = [one for one in found if tags[one["info"]["run_id"]].get("prefect.flow_run") == run["id"]]
    assert parent["info"]["status"] == "FINISHED"
    children = {one["info"]["run_name"]: one["info"] for one in found if one is not parent}
    assert set(children) == set(STAGES)

    report = children["report"]["run_id"]
    listed = machine.mlflow("GET", "/api/2.0/mlflow/artifacts/list", params={"run_id": report}).json()["files"]
    assert "report.html" in [file["path"] for file in listed]
    page = machine.mlflow("GET", "/get-artifact", params={"run_uuid": report, "path": "report.html"}).content
    assert page == (Path(tags[report]["artifact"]) / "report.html").read_bytes()


@servers
def test_runs_with_and_without_the_server_share_database_and_files(machine: Machine) -> None:
    [run] = [run for run in mlflow_runs(machine.data_root) if run.name == "report"]
    assert list((machine.data_root / "mlflow" / "artifacts").glob(f"**/{run.id}/artifacts/report.html"))


@dataclass(frozen=True)
class Deployed:
    """What `deploy` said after edits, and again after the deployment of which it had complained was deleted."""

    edits: Mapping[str, Any]  # of pretrain/vit_tiny
    older: Mapping[str, Any]  # deployments before they were made as of another version of this code
    first: subprocess.CompletedProcess[str]
    again: subprocess.CompletedProcess[str]
    refused: Mapping[str, Any]  # the deployment that did not fit, after the first
    paused: bool  # the work pool, at the end, which had been paused


@pytest.fixture(scope="module")
def deployed(begun: Begun) -> Deployed:
    machine, prefect = begun.machine, begun.machine.prefect
    nightly = prefect.get("/deployments/name/reproduce/demo")
    [schedule] = nightly["schedules"]
    assert (schedule["active"], schedule["schedule"]["cron"]) == (True, "0 3 * * *")
    place = f"/deployments/{nightly['id']}/schedules"
    prefect.patch(f"{place}/{schedule['id']}", {"active": False, "schedule": {"cron": "0 5 * * *", "timezone": "UTC"}})
    prefect.post(place, [{"schedule": {"interval": 86400, "timezone": "UTC"}, "active": True}])
    edited = prefect.get("/deployments/name/pretrain/vit_tiny")
    edited["parameters"]["config"]["images"]["path"] = "/data/imagenet"
    edits = {"parameters": edited["parameters"], "tags": ["pretrain", "mine"], "paused": True}
    prefect.patch(f"/deployments/{edited['id']}", edits)
    prefect.patch(f"/work_pools/{WORK_POOL}", {"is_paused": True})

    older = {name: prefect.get(f"/deployments/name/kclip-build/{name}") for name in ("dalle", "vqkd")}
    other = {"config": {"codebook": {"vocabulary": 16}}}  # as if that had been the preset, and was registered so
    version = re.sub("-[0-9a-f]+", f"-{value_digest(other)}", older["dalle"]["version"], count=1)
    prefect.patch(f"/deployments/{older['dalle']['id']}", {"parameters": other, "version": version})
    schema = {"type": "object", "properties": {}}  # as if it had had such an option
    unknown = {"parameters": {"config": {"palette": 16}}, "parameter_openapi_schema": schema}
    prefect.patch(f"/deployments/{older['vqkd']['id']}", unknown)

    first = machine.call("deploy")
    refused = prefect.get("/deployments/name/kclip-build/vqkd")
    deleted = prefect.prefect("--no-prompt", "deployment", "delete", "kclip-build/vqkd")
    assert deleted.returncode == 0, deleted.stdout
    again = machine.call("deploy")
    paused = prefect.get(f"/work_pools/{WORK_POOL}")["is_paused"]
    prefect.patch(f"/work_pools/{WORK_POOL}", {"is_paused": False})
    return Deployed(edits, older, first, again, refused, paused)


@servers
def test_deploying_keeps_what_was_changed_in_prefect_and_says_so(machine: Machine, deployed: Deployed) -> None:
    assert (deployed.first.returncode, deployed.again.returncode) == (0, 0), deployed.first.stderr
    count = sum(len(presets) for presets in PRESETS.values())
    kept = "kept as edited in Prefect: pretrain/vit_tiny (parameters, tags)"
    assert deployed.again.stdout.splitlines() == [f"deployments: {count}", kept]
    prefect = machine.prefect
    found = prefect.get("/deployments/name/reproduce/demo")["schedules"]
    assert {(one["active"], one["schedule"].get("cron")) for one in found} == {(False, "0 5 * * *"), (True, None)}
    after = prefect.get("/deployments/name/pretrain/vit_tiny")
    assert {name: after[name] for name in deployed.edits} == deployed.edits
    assert deployed.paused


@servers
def test_a_deployment_that_nobody_edited_follows_its_preset(machine: Machine, deployed: Deployed) -> None:
    assert "dalle" not in deployed.first.stdout
    before, after = deployed.older["dalle"], machine.prefect.get("/deployments/name/kclip-build/dalle")
    assert (after["parameters"], after["version"]) == (before["parameters"], before["version"])


@servers
def test_edited_parameters_that_do_not_fit_any_more_are_said_and_deleting_helps(
    machine: Machine, deployed: Deployed
) -> None:
    said = deployed.first.stdout
    assert "pretrain/vit_tiny (parameters, tags)" in said
    assert "kclip-build/vqkd stays as it is, delete it in Prefect to have its preset: " in said
    assert "'palette' was unexpected" in said
    assert deployed.refused["parameters"] == {"config": {"palette": 16}}
    there = machine.prefect.get("/deployments/name/kclip-build/vqkd")
    assert there["parameters"] == deployed.older["vqkd"]["parameters"]


@servers
def test_a_limit_of_the_work_pool_that_was_set_in_prefect_is_kept(machine: Machine) -> None:
    machine.prefect.patch(f"/work_pools/{WORK_POOL}", {"concurrency_limit": 3})
    done = machine.call("up")
    assert f"the work pool {WORK_POOL} keeps its limit of 3 runs at once, as set in Prefect" in done.stdout
    assert machine.prefect.get(f"/work_pools/{WORK_POOL}")["concurrency_limit"] == 3
    machine.prefect.patch(f"/work_pools/{WORK_POOL}", {"concurrency_limit": 1})


def kill_worker(machine: Machine) -> None:
    os.kill(machine.pids()["worker-1"], signal.SIGKILL)
    wait_for("the end of the worker", lambda: "worker-1" not in machine.pids(), 10)


def processes_of(machine: Machine, run: str) -> list[psutil.Process]:
    ours = machine.processes()
    return [process for process in ours if environment_of(process).get("PREFECT__FLOW_RUN_ID") == run]


@servers
def test_a_run_whose_worker_is_killed_goes_on_to_its_end(machine: Machine) -> None:
    long = apply_overrides(SMALL, ["demo_clip.seed=2", f"demo_clip.epochs={LONG_EPOCHS}"])
    run = machine.prefect.start(DEPLOYMENT, as_parameter(long))
    begun = machine.data_root / "train_demo_clip"
    wait_for("the start of the training", lambda: list(begun.glob("*.partial")), 120)
    before = machine.pids()
    kill_worker(machine)
    status = machine.call("status")
    assert status.returncode == 1
    assert "has ended; see" in status.stdout

    done = machine.call("up")

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("started:") == 1
    after = machine.pids()
    assert after.pop("worker-1") != before.pop("worker-1")
    assert after == before
    ended = machine.prefect.ended(run)
    assert ended["state"]["type"] == "COMPLETED", ended["state"]
    assert ended["run_count"] == 1
    assert f"the run {ended['name']} goes on without the worker that had started it" in done.stdout
    assert "report: building" in (machine.data_root / "services" / "runs.log").read_text()


@servers
def test_up_starts_a_run_again_that_died_with_its_worker(machine: Machine) -> None:
    run = machine.prefect.start(DEPLOYMENT, as_parameter(SMALL))
    wait_for("the run's process", lambda: processes_of(machine, run), 60)
    kill_worker(machine)
    signal_groups(processes_of(machine, run), signal.SIGKILL)
    lost = machine.prefect.get(f"/flow_runs/{run}")
    assert lost["state"]["type"] in ("PENDING", "RUNNING")

    done = machine.call("up")

    assert done.returncode == 0, done.stderr
    assert f"the run {lost['name']} had lost its process; it is started again" in done.stdout
    assert machine.prefect.ended(run)["state"]["type"] == "COMPLETED"
    states = machine.prefect.get(f"/flow_run_states/?flow_run_id={run}")
    assert {"Crashed", "AwaitingRetry", "Completed"} <= {state["name"] for state in states}


@servers
def test_up_cancels_a_run_that_was_to_be_cancelled_when_its_worker_was_killed(machine: Machine) -> None:
    run = machine.prefect.start(DEPLOYMENT, as_parameter(SMALL))
    wait_for("the run's process", lambda: processes_of(machine, run), 60)
    kill_worker(machine)
    machine.prefect.post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}, "force": True})

    done = machine.call("up")

    assert done.returncode == 0, done.stderr
    assert "was to be cancelled when its worker was killed; it is" in done.stdout
    assert machine.prefect.get(f"/flow_runs/{run}")["state"]["type"] == "CANCELLED"
    assert not processes_of(machine, run)


@servers
def test_down_stops_a_run_gently_and_leaves_no_process(machine: Machine) -> None:
    slow = apply_overrides(SMALL, ["demo_clip.seed=1", "demo_clip.epochs=100000"])
    run = machine.prefect.start(DEPLOYMENT, as_parameter(slow))
    begun = machine.data_root / "train_demo_clip"
    wait_for("the start of the training", lambda: list(begun.glob("*.partial")), 120)
    processes = machine.processes()

    done = machine.call("down", "--patience", "0")

    assert done.returncode == 0, done.stderr
    assert "stopped: mlflow, prefect, worker-1" in done.stdout
    assert len(processes) > 3
    assert not [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not machine.processes()
    with closing(sqlite3.connect(machine.data_root / "services" / "prefect" / "prefect.db")) as database:
        rows = database.execute("SELECT state_type, id FROM flow_run WHERE state_type <> 'SCHEDULED'").fetchall()
        paused = database.execute("SELECT is_paused FROM work_pool").fetchall()
    assert ("CRASHED", run) in rows
    assert "RUNNING" not in dict(rows)
    assert paused == [(0,)]
    statuses = {one.status for one in mlflow_runs(machine.data_root)}
    assert statuses == {"FINISHED", "KILLED"}
    again = machine.call("down")
    assert (again.returncode, "nothing runs" in again.stdout) == (0, True)


@servers
def test_a_paused_schedule_stays_paused_when_all_is_started_again(machine: Machine, deployed: Deployed) -> None:
    done = machine.call("up", "--runs", "2")
    assert done.returncode == 0, done.stderr
    assert machine.prefect.get(f"/work_pools/{WORK_POOL}")["concurrency_limit"] == 2  # nobody had set the other one
    assert "kept as edited in Prefect: pretrain/vit_tiny (parameters, tags)" in done.stdout
    [nightly] = [
        one for one in machine.prefect.get("/deployments/name/reproduce/demo")["schedules"] if one["slug"] == "nightly"
    ]
    assert not nightly["active"]


@servers
def test_a_database_that_is_none_is_said_before_any_server_starts(idle: Machine) -> None:
    database = idle.data_root / "mlflow" / "mlflow.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"no database at all" * 1000)

    done = idle.call("up")

    assert done.returncode == 2
    assert f"MLflow's database {database} cannot be used (file is not a database)" in done.stderr
    assert not idle.processes()


def test_a_server_that_does_not_start_shows_the_end_of_its_log_and_stops_the_others(idle: Machine) -> None:
    database = idle.data_root / "services" / "prefect" / "prefect.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"no database at all" * 1000)

    done = idle.call("up")

    assert done.returncode == 2
    assert f"prefect has ended; the end of {idle.data_root}/services/prefect.log" in done.stderr
    assert "file is not a database" in done.stderr
    assert not idle.processes()
    assert not idle.folder.records()


def test_a_process_that_got_a_recorded_pid_is_not_touched(idle: Machine) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as foreign:
        try:
            idle.folder.path.mkdir(parents=True)
            record = Started(
                name="worker-1",
                pid=foreign.pid,
                port=None,
                command=[],
                log=idle.path / "log",
                started=datetime.now(UTC),
            )
            (idle.folder.path / "services.json").write_text(f"[{record.model_dump_json()}]")
            status, done = idle.call("status"), idle.call("down")
            assert (status.returncode, "has ended" in status.stdout) == (1, True)
            assert (done.returncode, "nothing runs" in done.stdout) == (0, True)
            assert foreign.poll() is None
            assert not idle.folder.records()
        finally:
            foreign.kill()


def test_a_run_that_outlived_its_worker_outlives_an_up_that_fails(idle: Machine) -> None:
    idle.folder.path.mkdir(parents=True)
    asleep = Service("worker-1", ("timeit", "-n1", "-s", "import time", "time.sleep(600)"), os.environ, idle.path)
    run = idle.folder.start(asleep)
    idle.folder.start(asleep)  # the worker that takes its place

    stop(idle.folder, ["worker-1"], spared=groups_of([psutil.Process(run.pid)]))

    assert [process.pid for process in idle.processes()] == [run.pid]
    assert list(idle.folder.records()) == ["worker-1"]  # by which the next `up` finds the run


def test_deploy_without_a_server_is_one_sentence(idle: Machine) -> None:
    done = idle.call("deploy")
    url = f"http://127.0.0.1:{idle.prefect_port}"
    assert done.returncode == 2
    assert done.stderr == f"mapet: error: no Prefect server answers at {url}; start it with `make up`\n"


def test_an_impossible_port_is_one_sentence(idle: Machine) -> None:
    done = idle.call("up", MAPET_MLFLOW_PORT="70000")
    assert done.returncode == 2
    assert done.stderr.startswith("mapet: error: mlflow_port: input should be less than or equal to 65535")
    assert done.stderr.count("\n") == 1


def test_nothing_was_started_is_no_error(idle: Machine) -> None:
    assert [idle.call(word).returncode for word in ("status", "down")] == [0, 0]
    assert not idle.data_root.exists()


def test_two_commands_at_once_are_refused(idle: Machine) -> None:
    idle.folder.path.mkdir(parents=True)
    with idle.folder.locked():
        done = idle.call("up")
    assert done.returncode == 2
    assert "another command starts or stops the services" in done.stderr


@pytest.mark.parametrize(
    ("gpus", "runs", "shares"),
    [
        ("", 0, [""]),
        ("", 2, ["", ""]),
        ("0", 0, ["0"]),
        ("0 1 2", 0, ["0", "1", "2"]),
        ("0 1 2 3", 2, ["0 2", "1 3"]),
        ("4 7", 1, ["4 7"]),
        ("0 1", 3, ["0", "1", "0"]),
    ],
)
def test_gpus_are_divided_among_runs(gpus: str, runs: int, shares: list[str]) -> None:
    assert divide(gpus.split(), runs) == [tuple(share.split()) for share in shares]


def test_each_worker_takes_one_run_at_a_time_and_sees_only_its_gpus() -> None:
    first, second = catalogue.workers(ServiceSettings(runs=2), [("0", "2"), ("1",)])
    assert first.words[-2:] == second.words[-2:] == ("--limit", "1")
    assert first.environment["CUDA_VISIBLE_DEVICES"] == "0,2"
    assert first.environment["MAPET_PROCESSES"] == "2"
    assert second.environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert "MAPET_PROCESSES" not in second.environment


def test_processes_that_train_together_are_as_many_as_was_said() -> None:
    [worker] = catalogue.workers(ServiceSettings(processes=1), [("0", "1")])
    assert "MAPET_PROCESSES" not in worker.environment


def test_a_tracking_server_of_somebody_else_is_used() -> None:
    [worker] = catalogue.workers(ServiceSettings(tracking_uri="http://mlflow.lab:5000"), [()])
    assert worker.environment["MAPET_TRACKING_URI"] == "http://mlflow.lab:5000"
    assert not ServiceSettings(tracking_uri="http://mlflow.lab:5000").tracks_here
    assert ServiceSettings(tracking_uri="http://127.0.0.1:5000/").tracks_here
