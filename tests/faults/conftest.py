"""The run that nothing disturbs, which all others are compared with."""

from pathlib import Path

import pytest

from tests.faults.chain import Expected, expected_of, run_chain


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its data root; nobody changes it."""
    root = tmp_path_factory.mktemp("undisturbed") / "data"
    assert not run_chain(root).failures
    return root


@pytest.fixture(scope="session")
def expected(undisturbed: Path) -> Expected:
    return expected_of(undisturbed)
