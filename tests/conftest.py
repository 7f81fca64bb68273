"""For every test: no telemetry, no settings from outside, and shapes of tensors checked as annotated."""

import os

import pytest
from jaxtyping import install_import_hook

from pipeline.openmp import share_cores

if "PYTEST_XDIST_WORKER" in os.environ:  # one of as many as there are cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
share_cores()  # as the command line does
os.environ["DO_NOT_TRACK"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"

for name in [name for name in os.environ if name.startswith("MAPET_")]:
    del os.environ[name]  # a test's settings are the ones it writes down

install_import_hook("models", "beartype.beartype")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For several processes of pytest-xdist: tests of a file share what they built, those with the Prefect server
    share it, and each such group stays in one process."""
    for item in items:
        group = "servers" if item.get_closest_marker("servers") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
