"""For every test: no telemetry, no settings from outside, and shapes of tensors checked as annotated."""

import os
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    """Of an S3 server on this machine."""
    from tests.object_store import s3_server  # whose imports take seconds

    with s3_server() as port:
        yield port


@pytest.fixture
def s3(s3_port: int, tmp_path: Path) -> str:
    """An address of this test's own on that server."""
    from tests.object_store import BUCKET, s3_files

    s3_files()  # forgets the servers of other tests
    return f"s3://{BUCKET}/{tmp_path.name}"
