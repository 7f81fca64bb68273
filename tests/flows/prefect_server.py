"""A real Prefect server and worker for tests: on 127.0.0.1, with a home of their own, stopped at the end."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

REPOSITORY = Path(__file__).parents[2]
Value = TypeVar("Value")
FlowRun = dict[str, Any]  # as Prefect's API tells it

_ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

# Services that these tests do not need write to SQLite in the background, and now and then lock it for a minute.
_IDLE_SERVICES = ("EVENT_PERSISTER", "TRIGGERS", "LATE_RUNS", "FOREMAN", "PAUSE_EXPIRATIONS", "REPOSSESSOR")


def wait_for(what: str, probe: Callable[[], Value | None], seconds: float) -> Value:
    """Return the first value of `probe` that is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := probe():
            return value
        time.sleep(0.3)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


@dataclass(frozen=True)
class PrefectServer:
    """A running server: its API, and the environment in which commands and workers talk to it."""

    url: str
    environment: Mapping[str, str]
    process: "subprocess.Popen[bytes] | None" = None  # that of `prefect_server`

    def kill(self) -> None:
        """Kill it as a power cut would."""
        assert self.process is not None
        for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            process.kill()
        self.process.wait()

    def get(self, path: str) -> Any:
        return self._answer("GET", path)

    def post(self, path: str, body: Any) -> Any:
        return self._answer("POST", path, json=body)

    def _answer(self, method: str, path: str, **request: Any) -> Any:
        answer = self._request(method, path, **request)
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def _request(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Asks again on 503, as Prefect's own client does: so the server answers while SQLite is locked."""

        def probe() -> httpx.Response | None:
            answer = httpx.request(method, f"{self.url}{path}", timeout=120, **request)
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

        return wait_for(f"another answer to {method} {path} than 503", probe, 240)

    def prefect(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `prefect words...` in the repository and wait for it."""
        return self.python("-m", "prefect", *words, folder=REPOSITORY)

    def python(self, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def start(self, name: str, config: Mapping[str, Any]) -> str:
        """Ask for a run of a deployment with a whole configuration, and return its id at once."""
        return self.start_with(name, config=config)

    def start_with(self, name: str, **parameters: Any) -> str:
        """Ask for a run with these parameters, and return its id at once."""
        asked = self.ask(name, parameters)
        assert asked.is_success, asked.text
        return str(asked.json()["id"])

    def ask(self, name: str, parameters: Mapping[str, Any]) -> httpx.Response:
        """Return what the server answers to somebody who wants a run with these parameters."""
        deployment = self.get(f"/deployments/name/{name}")
        return self._request(
            "POST", f"/deployments/{deployment['id']}/create_flow_run", json={"parameters": parameters}
        )

    def patch(self, path: str, body: Mapping[str, Any]) -> None:
        assert self._request("PATCH", path, json=dict(body)).is_success

    def ended(self, run_id: str) -> FlowRun:
        """Return the run as the API tells it, once it has ended."""

        def probe() -> FlowRun | None:
            run: FlowRun = self.get(f"/flow_runs/{run_id}")
            return run if run["state"]["type"] in _ENDED else None

        return wait_for("the end of the run", probe, 240)

    def run_by_command(self, name: str, **parameters: Any) -> FlowRun:
        """Return `prefect deployment run NAME -p ... --watch`, as a user calls it."""
        given = [word for key, value in parameters.items() for word in ("-p", f"{key}={json.dumps(value)}")]
        done = self.prefect("deployment", "run", name, *given, "--watch")
        created = re.search(r"UUID: (\S+)", done.stdout)  # others may be scheduled meanwhile
        assert created, done.stdout + done.stderr
        ended = self.ended(created[1])
        assert (done.returncode == 0) == (ended["state"]["type"] == "COMPLETED"), done.stdout + done.stderr
        return ended

    def stages_of(self, run: FlowRun) -> dict[str, dict[str, Any]]:
        """Return the run's task runs by task, once the server has recorded that all of them ended."""

        def ended() -> list[dict[str, Any]] | None:
            tasks = self.post("/task_runs/filter", {"task_runs": {"flow_run_id": {"any_": [run["id"]]}}})
            return tasks if tasks and all(task["end_time"] for task in tasks) else None

        tasks = wait_for("the states of all task runs", ended, 30)
        tasks.sort(key=lambda task: task["start_time"])
        return {task["name"].partition("-")[0]: task for task in tasks}

    def logs_of(self, run: FlowRun, *, until: str) -> str:
        """Return a run's log lines, once one with `until` has arrived: they are sent in batches."""

        def probe() -> str | None:
            logs = self.post("/logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "sort": "TIMESTAMP_ASC"})
            text = "\n".join(entry["message"] for entry in logs)
            return text if until in text else None

        return wait_for(f"the log line {until!r}", probe, 30)


@contextmanager
def prefect_server(home: Path, port: int = 0) -> Iterator[PrefectServer]:
    """Start a server on that port, or a free one, and stop it at the end, whatever happens."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = quiet_environment(home, url)
    command = ("server", "start", "--host", "127.0.0.1", "--port", str(port))
    with running(command, environment, cwd=home, log=home / "server.log") as process:
        wait_for("the Prefect server", lambda: _healthy(url), 120)
        yield PrefectServer(url, environment, process)


@contextmanager
def running(
    words: tuple[str, ...], environment: Mapping[str, str], *, cwd: Path, log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `prefect words...` in the background, ended with all that it started."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *words],
            cwd=cwd,
            env=dict(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and its descendants; a worker's flow runs are in process groups of their own."""
    descendants: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        descendants = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()
    for descendant in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()
    process.wait()


def quiet_environment(home: Path, url: str) -> dict[str, str]:
    """Return one with no settings from outside, no telemetry, no service that tests do not need."""
    outer = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAPET_", "PREFECT_", "MLFLOW_"))
    }
    return {
        **outer,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), outer.get("PYTHONPATH")])),  # as if installed
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "DO_NOT_TRACK": "true",
        **{f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false" for service in _IDLE_SERVICES},
    }


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False
