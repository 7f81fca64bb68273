"""The check of a card: whatever a step does, it is written down and the rest goes on; its arithmetic on a CPU."""

import json
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check.assignment import brute_force, heavy_tailed
from benchmarks.gpu_check.attention import CPU_WAYS, attention_of
from benchmarks.gpu_check.checks import Check, Setup
from benchmarks.gpu_check.clock import device_peak
from benchmarks.gpu_check.runner import Card, Record, Step, run_all
from benchmarks.gpu_check.suite import check_of_line
from models.vit.windows import SlidingWindow

STEPS = {
    "dies": """
import os
from benchmarks.gpu_check.checks import Check
def attempts(setup):
    yield "first", lambda: iter([Check("first", "passed")])
    yield "second", lambda: os.abort()
    yield "third", lambda: iter([Check("third", "passed")])
""",
    "hangs": """
import subprocess, sys, time
from benchmarks.gpu_check.checks import Check
def attempts(setup):
    yield "first", lambda: iter([Check("first", "measured", 1.23456, "s")])
    yield "second", lambda: subprocess.run([sys.executable, "-c", "import time; time.sleep(1000)"])
""",
    "raises": """
from benchmarks.gpu_check.checks import Check
def attempts(setup):
    def halfway():
        yield Check("half", "passed")
        raise RuntimeError("CUDA error: an illegal memory access\\nmore of it")
    yield "halfway", halfway
    def without():
        import no_such_package
        yield Check("never", "passed")
    yield "without", without
    yield "after", lambda: iter([Check("after", "passed", note=setup.device)])
""",
    "lacks": "import no_such_package",
    "ends": """
from benchmarks.gpu_check.checks import Check
def attempts(setup):
    yield "all", lambda: iter([Check("all", "passed")])
""",
}


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Step]:
    """Modules that a process of the check can import."""
    for name, text in STEPS.items():
        (tmp_path / f"{name}_step.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return {name: Step(name, f"{name}_step", 60) for name in STEPS}


def run(steps: list[Step], record: Record, *, minutes: float = 5) -> dict[tuple[str, str], tuple[str, str]]:
    """Return step and check -> status and note, as they stand in the file."""
    run_all(steps, Setup("cpu", quick=True), record, minutes=minutes)
    lines = [json.loads(line) for line in record.path.read_text().splitlines()]
    return {(line["step"], line["name"]): (line["status"], line["note"]) for line in lines}


def test_a_step_that_fails_dies_or_lacks_something_is_noted_and_the_rest_goes_on(
    steps: dict[str, Step], tmp_path: Path
) -> None:
    chosen = [steps[name] for name in ("dies", "raises", "lacks", "ends")]
    found = run(chosen, Record(tmp_path / "results" / "card.jsonl", {"card": "a card"}))
    assert found == {
        ("dies", "first"): ("passed", ""),
        ("dies", "second"): ("failed", "its process ended with signal SIGABRT"),
        ("dies", "third"): ("passed", ""),
        ("raises", "half"): ("passed", ""),
        ("raises", "halfway"): ("failed", "RuntimeError: CUDA error: an illegal memory access"),
        ("raises", "without"): ("left out", "needs no_such_package, which is not installed"),
        ("raises", "after"): ("passed", "cpu"),
        ("lacks", ""): ("left out", "needs no_such_package, which is not installed"),
        ("ends", "all"): ("passed", ""),
    }
    assert "more of it" in (tmp_path / "results" / "card.log").read_text()


def test_a_step_that_hangs_is_killed_with_what_it_started_and_keeps_what_it_found(
    steps: dict[str, Step], tmp_path: Path
) -> None:
    hanging, started = Step("hangs", steps["hangs"].module, 20), time.monotonic()
    found = run([hanging, steps["ends"]], Record(tmp_path / "card.jsonl", {}))
    assert found["hangs", "first"] == ("measured", "")
    assert found["hangs", "second"] == ("timed out", "killed, the step had 20 s")
    assert found["ends", "all"] == ("passed", "")
    assert time.monotonic() - started < 100


def test_when_the_time_is_over_the_rest_is_left_out(steps: dict[str, Step], tmp_path: Path) -> None:
    found = run([steps["ends"]], Record(tmp_path / "card.jsonl", {}), minutes=0)
    assert found == {("ends", ""): ("left out", "no time was left")}


def test_a_step_that_runs_again_replaces_its_own_lines_only(tmp_path: Path) -> None:
    record = Record(tmp_path / "card.jsonl", {"driver": "580"})
    record.replace("a", [Check("x", "failed"), Check("y", "passed")], 1)
    record.replace("b", [Check("x", "passed")], 1)
    record.replace("a", [Check("x", "measured", 1.23456, "s")], 2)
    lines = [json.loads(line) for line in record.path.read_text().splitlines()]
    assert [(line["step"], line["status"], line["value"]) for line in lines] == [
        ("b", "passed", None),
        ("a", "measured", 1.235),
    ]
    assert lines[1]["driver"] == "580"


def test_a_file_is_called_after_its_card() -> None:
    assert Card("NVIDIA H100 80GB HBM3").file_name == "nvidia-h100-80gb-hbm3"
    assert Card("").file_name == "unknown"


def test_a_device_is_known_by_its_name_or_not() -> None:
    assert device_peak("NVIDIA H100 PCIe") == 756e12
    assert device_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert device_peak("another") is None


def test_an_unknown_step_is_refused_with_the_known_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--steps", "speed"]) == 2
    assert "machine, nccl, attention" in capsys.readouterr().err


def test_the_quick_check_runs_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "cpu", "--quick", "--steps", "assignment,kmeans", "--to", str(tmp_path)]
    assert command.main(words) == 0, capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "cpu-quick.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {"assignment", "kmeans"}
    assert {line["status"] for line in lines} == {"passed", "measured"}
    assert {line["torch"] for line in lines} == {torch.__version__}
    assert "passed    twice the same bits" in capsys.readouterr().out


def test_lines_of_pytest_become_checks() -> None:
    path = "tests/gpu/test_kmeans.py::test_"
    assert check_of_line(f"{path}the_codebook_is_the_cpus PASSED   [ 10%]\n") == Check(
        "kmeans: the_codebook_is_the_cpus", "passed"
    )
    failed = check_of_line(f"{path}two_fits[None-all rows] FAILED [ 10%]\n")
    assert failed == Check("kmeans: two_fits[None-all rows]", "failed", note="see the log")
    skipped = check_of_line(f"{path}two_fits SKIPPED (no FAISS) [ 10%]\n")
    assert skipped == Check("kmeans: two_fits", "left out", note="no FAISS")
    assert check_of_line("tests/gpu/test_kmeans.py:12: AssertionError\n") is None


def test_the_benchmark_of_windows_attends_as_the_mask_says_in_every_way_of_a_cpu() -> None:
    window = SlidingWindow(20, 10, width=20)
    q, k, v = (torch.randn(2, 2, n, 8, dtype=torch.float64) for n in (window.rows, window.keys, window.keys))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=window.mask())
    for name in CPU_WAYS:
        torch.testing.assert_close(attention_of(window, name, "cpu")(q, k, v), expected, msg=name)


def test_heavy_tails_are_hard_on_float16_and_found_by_brute_force() -> None:
    features, centroids = heavy_tailed(rows=500, vocabulary=64, width=32, device="cpu")
    nearest = torch.cdist(features.double(), centroids.double()).argmin(1)
    assert torch.equal(brute_force(features, centroids), nearest)
    assert features.abs().max() > 50 * features.abs().median()
