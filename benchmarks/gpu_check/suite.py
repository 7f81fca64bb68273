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
    yield "tests", lambda: _tests(setup)


def _tests(setup: Setup) -> Iterator[Check]:
    import pytest  # noqa: F401 (so that its absence is said)

    chosen = "tests/gpu/test_assignment.py" if setup.quick else "tests/gpu"
    command = [sys.executable, "-u", "-m", "pytest", "-vvv", "-p", "no:cacheprovider", "--tb=short", chosen]
    environment = {**os.environ, "MAPET_TEST_DEVICE": setup.device, "COLUMNS": "300"}
    with subprocess.Popen(command, cwd=_REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as pytest_run:
        assert pytest_run.stdout is not None
        for line in pytest_run.stdout:
            print(line, end="", flush=True)
            if check := check_of_line(line):
                yield check
    if pytest_run.returncode not in (0, 1):  # 1: a test failed, which is a check of its own
        yield Check("pytest", "failed", note=f"exit code {pytest_run.returncode}, see the log")


def check_of_line(line: str) -> Check | None:
    """What a line of `pytest -vvv` says about a test; None for another line."""
    if not (found := _LINE.match(line)):
        return None
    file, name, word, reason = found.groups()
    note = reason or ("see the log" if _WORDS[word] == "failed" else "")
    return Check(f"{file}: {name}", _WORDS[word], note=note)
