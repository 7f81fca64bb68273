"""Prefect itself: the versions of FastAPI and SQLAlchemy beside it have broken it before, silently."""

from typing import Any

import pytest

from tests.flows.prefect_server import PrefectServer, wait_for


def test_prefects_api_imports_with_the_installed_fastapi() -> None:
    from prefect.server.api.server import create_app

    assert create_app().title


@pytest.mark.servers
def test_a_schedule_creates_runs(server: PrefectServer) -> None:
    flow = server.post("/flows/", {"name": "scheduled"})
    schedule = {"schedule": {"interval": 3600, "timezone": "UTC"}, "active": True}
    deployment = server.post("/deployments/", {"name": "hourly", "flow_id": flow["id"], "schedules": [schedule]})
    of_deployment = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}}

    def scheduled() -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = server.post("/flow_runs/filter", of_deployment)
        return runs

    runs = wait_for("a scheduled run", scheduled, 60)
    assert all(run["auto_scheduled"] and run["state"]["type"] == "SCHEDULED" for run in runs)
