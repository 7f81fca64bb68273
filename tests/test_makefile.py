"""The Makefile's own logic: which FAISS is installed, and when something is installed again."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """With nothing installed."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    return tmp_path


def installed(checkout: Path, faiss: str) -> None:
    (checkout / f".venv/.installed-{faiss}").touch()


def would_run(checkout: Path, *words: str) -> str:
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *words], cwd=checkout, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_new_checkout_installs_faiss_for_the_cpu(checkout: Path) -> None:
    assert "-e '.[cpu,dev]'" in would_run(checkout, "install")


def test_what_is_installed_is_not_installed_again(checkout: Path) -> None:
    installed(checkout, "cpu")
    assert "pip install" not in would_run(checkout, "install")


def test_asking_for_the_other_faiss_changes_the_package(checkout: Path) -> None:
    installed(checkout, "cpu")
    said = would_run(checkout, "install", "FAISS=gpu")
    removed, added = said.index("--yes faiss-cpu faiss-gpu"), said.index("-e '.[gpu,dev]'")
    assert removed < added, "both write the package `faiss`: taking one away later would break the other"


def test_an_installation_that_fails_does_not_count_as_the_one_before(checkout: Path) -> None:
    installed(checkout, "cpu")
    (checkout / ".venv/bin").mkdir()
    (checkout / ".venv/bin/python").write_text('#!/bin/sh\n[ "$3" != install ]\n')  # uninstalls, cannot install
    (checkout / ".venv/bin/python").chmod(0o755)
    done = subprocess.run(["make", "install", "FAISS=gpu", "PYTHON=true"], cwd=checkout, capture_output=True)
    assert done.returncode == 2
    assert "pip install" in would_run(checkout, "install")


def test_no_other_extra_brings_a_faiss_back() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    with_faiss = {name for name, packages in extras.items() if any("faiss" in package for package in packages)}
    assert with_faiss == {"cpu", "gpu"}


def test_faiss_for_the_gpu_stays_for_the_commands_after_it(checkout: Path) -> None:
    installed(checkout, "gpu")
    assert "pip install" not in would_run(checkout, "demo")
    assert "-e '.[cpu,dev]'" in would_run(checkout, "install", "FAISS=cpu")
