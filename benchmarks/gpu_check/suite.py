"""Step `tests`: the folder tests/gpu, one check a test, known as soon as pytest says it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_check.checks import Attempt, Check, Setup, Status

_REPOSITORY = Path(__file__).parents[2]
_LINE = re.compile(r"tests/gpu/(?:test_)?(\S+?)\.py::(?:test_)?(.+?) (PASSED|FAILED|ERROR|SKIPPED)(?: \((.*)\))?")
_WORDS: dict[str, Status] = {"PASSED": "passed", "FAILED": "failed", "ERROR": "failed", "SKIPPED": "left out"}


def attempts(setup: Setup) -> Iterator[Attempt]:
    """Yield an attempt per file: a test that kills its process takes only the rest of its file with it."""
    files = sorted((_REPOSITORY / "tests" / "gpu").glob("test_*.py"))
    for file in files[:1] if setup.quick else files:
        yield file.stem, lambda file=file: _tests(file, setup)


def _tests(file: Path, setup: Setup) -> Iterator[Check]:
    import pytest  # noqa: F401 (so that its absence is said)

    command = [sys.executable, "-u", "-m", "pytest", "-vvv", "-p", "no:cacheprovider", "--tb=short", str(file)]
    environment = {**os.environ, "MAPET_TEST_DEVICE": setup.device, "COLUMNS": "300"}
    with subprocess.Popen(command, cwd=_REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as pytest_run:
        assert pytest_run.stdout is not None
        for line in pytest_run.stdout:
            print(line, end="", flush=True)
            if check := check_of_line(line):
                yield check
    if pytest_run.returncode not in (0, 1):  # 1: a test failed, which is a check of its own
        yield Check(
            f"{file.stem}, all of it", "failed", note=f"pytest's exit code {pytest_run.returncode}, see the log"
        )


def check_of_line(line: str) -> Check | None:
    """Read what a line of `pytest -vvv` says about a test; None for another line."""
    if not (found := _LINE.match(line)):
        return None
    file, name, word, reason = found.groups()
    note = reason or ("see the log" if _WORDS[word] == "failed" else "")
    return Check(f"{file}: {name}", _WORDS[word], note=note)
