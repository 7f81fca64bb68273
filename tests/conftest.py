"""For every test: no telemetry, no settings from outside, and shapes of tensors checked as annotated."""

import os

import pytest
from jaxtyping import install_import_hook

os.environ["DO_NOT_TRACK"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"

install_import_hook("models", "beartype.beartype")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MAPET_")]:
        monkeypatch.delenv(name)
