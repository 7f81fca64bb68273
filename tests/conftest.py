"""For every test: no telemetry, no settings from outside, and shapes of tensors checked as annotated."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

from pipeline.engine.threads import share_cores

if "PYTEST_XDIST_WORKER" in os.environ:  # one of as many as there are cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
share_cores()  # as the command line does
os.environ["DO_NOT_TRACK"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"

_FLOWS, _SERVICES = "tests/flows/", "tests/flows/test_services.py"  # the latter starts servers of its own
TEST_DEVICE = os.environ.get("MAPET_TEST_DEVICE", "")  # of tests/gpu, which say what it means
for name in [name for name in os.environ if name.startswith("MAPET_")]:
    del os.environ[name]  # a test's settings are the ones it writes down

# What is compiled is kept, for the many processes of tests, whatever a container says of its own.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

install_import_hook("models", "beartype.beartype")


_modules = 0  # that had been imported when their objects were set aside


def pytest_runtest_setup() -> None:
    """Set aside what imports have made, which stays, whenever there is more of it: each stage collects garbage twice,
    and would look through a million objects of libraries each time, for longer than most stages of a test take."""
    global _modules
    if len(sys.modules) > _modules + 50:
        _modules = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries look for what they have leaked when the process ends


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Schedule for several processes of pytest-xdist: each group of tests stays in one of them, so that what it shares
    is made once."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest groups first, or a process would begin one when all others are about to end."""
    items.sort(key=lambda item: _group(item.nodeid) not in (_FLOWS, _SERVICES))


def _group(nodeid: str) -> str:
    """Return what runs in one process: a file; of flows/ those files that share a Prefect server and its worker."""
    file = nodeid.partition("::")[0]
    return _FLOWS if file.startswith(_FLOWS) and file != _SERVICES else file


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
