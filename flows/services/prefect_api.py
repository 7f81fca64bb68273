"""The few questions that services ask a Prefect server. Over HTTP: Prefect's own client takes a second to import."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from pipeline.engine.errors import PipelineError


def answers(url: str) -> bool:
    """Tell whether a page answers with success."""
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success  # no proxy for what runs on this machine
    except httpx.TransportError:
        return False


@dataclass(frozen=True)
class OpenRun:
    """A flow run that has begun, as far as Prefect knows, and not ended. `worker` is empty until one has taken it."""

    id: str
    name: str
    worker: str
    state: str
    since: datetime

    @property
    def is_cancelled(self) -> bool:
        return self.state == "CANCELLING"


class PrefectApi:
    """The API of a server, `http://host:port`."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/api"

    @property
    def healthy(self) -> bool:
        return answers(f"{self._url}/health")

    def has_pool(self, name: str) -> bool:
        return self._send("GET", f"/work_pools/{name}", accept=httpx.codes.NOT_FOUND).is_success

    def pool_is_paused(self, name: str) -> bool:
        return bool(self._send("GET", f"/work_pools/{name}").json()["is_paused"])

    def pause_pool(self, name: str, paused: bool) -> None:
        self._send("PATCH", f"/work_pools/{name}", {"is_paused": paused})

    def pool_limit(self, name: str) -> int | None:
        """Ask how many runs of a pool may go on at once; None: any number."""
        limit: int | None = self._send("GET", f"/work_pools/{name}").json()["concurrency_limit"]
        return limit

    def limit_pool(self, name: str, runs: int) -> None:
        self._send("PATCH", f"/work_pools/{name}", {"concurrency_limit": runs})

    def heartbeats(self, pool: str) -> dict[str, datetime]:
        """Ask when each worker of a pool was last heard from."""
        found = self._send("POST", f"/work_pools/{pool}/workers/filter", {}).json()
        return {one["name"]: datetime.fromisoformat(one["last_heartbeat_time"]) for one in found}

    def open_runs(self, pool: str) -> list[OpenRun]:
        """List the runs that hold a place in a pool."""
        states = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
        query = {"work_pools": {"name": {"any_": [pool]}}, "flow_runs": states}
        found = self._send("POST", "/flow_runs/filter", query).json()
        return [
            OpenRun(
                id=one["id"],
                name=one["name"],
                worker=one["labels"].get("prefect.worker.name", ""),
                state=one["state"]["type"],
                since=datetime.fromisoformat(one["state"]["timestamp"]),
            )
            for one in found
        ]

    def end_lost(self, run: OpenRun) -> None:
        """Mark a run whose process is gone as `Crashed`, or as `Cancelled` if it was to be.

        It would otherwise hold its place in the pool for ever, and nothing would run again.
        """
        message = "Its process is gone: the machine or the worker was stopped. What is done is kept: retry it."
        ended = {"type": "CRASHED", "name": "Crashed", "message": message}
        if run.is_cancelled:
            ended = {"type": "CANCELLED", "name": "Cancelled", "message": "Its process is gone."}
        self._send("POST", f"/flow_runs/{run.id}/set_state", {"state": ended, "force": True})

    def start_again(self, run: OpenRun) -> None:
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Started again by `make up`."}
        self._send("POST", f"/flow_runs/{run.id}/set_state", {"state": state, "force": True})

    def _send(self, method: str, path: str, body: Any = None, *, accept: int = httpx.codes.OK) -> httpx.Response:
        """Send a request; PipelineError for no answer, or one that is neither a success nor `accept`."""
        try:
            with httpx.Client(timeout=90, trust_env=False) as client:
                for _ in range(3):  # 503 says after a minute that SQLite is locked
                    answer = client.request(method, f"{self._url}{path}", json=body)
                    if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                        break
        except httpx.TransportError as error:
            raise PipelineError(f"the Prefect server at {self._url} does not answer ({error})") from None
        if not answer.is_success and answer.status_code != accept:
            raise PipelineError(f"Prefect at {self._url}{path} answers {answer.status_code}: {answer.text[:300]}")
        return answer
