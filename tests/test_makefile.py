"""The Makefile's own logic: which FAISS is installed, when something is installed again, and what `test` tells."""

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


LINTERS = ("ruff", "lint-imports", "bandit", "mypy")


def checked(checkout: Path, *failing: str) -> subprocess.CompletedProcess[str]:
    """Run `make test` with programs that say who they are, and of which some fail."""
    installed(checkout, "cpu")
    for name in ("python", *LINTERS):
        program = checkout / ".venv/bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho "begin $0"; sleep 0.1; echo "end $0"; exit {int(name in failing)}\n')
        program.chmod(0o755)
    return subprocess.run(["make", "test"], cwd=checkout, capture_output=True, text=True)


@pytest.mark.parametrize("failing", [(), ("ruff",), ("lint-imports", "mypy"), ("python",), ("python", "bandit")])
def test_every_check_is_run_and_one_that_fails_fails_all(checkout: Path, failing: tuple[str, ...]) -> None:
    done = checked(checkout, *failing)
    assert (done.returncode != 0) == bool(failing)
    said = [line.split(" ")[0] for line in done.stdout.splitlines() if line.startswith(("begin ", "end "))]
    assert said == ["begin", "end"] * (len(LINTERS) + 2), "one after the other, and ruff twice"
    assert all(f"end .venv/bin/{name}" in done.stdout for name in ("python", *LINTERS))
    complaints = sum({"ruff": 2, "python": 0}.get(name, 1) for name in failing)
    assert done.stdout.count("] Error 1") == complaints, "make names each linter that fails"
