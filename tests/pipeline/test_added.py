"""What somebody adds, a sixth objective, a fifth tokenizer, a ninth protocol, is one file and one entry: whatever else
plans, runs, tracks and reports asks the entry."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builds import make_photos
from tests.trainings import SMALL

CHOSEN = (
    *SMALL,
    'grid.tokenizers=["brightness"]',
    "grid.tokens_only=[]",
    'grid.objectives=["reversed","mim"]',
    'evaluate.protocols=["majority"]',
    'grid.scratch_protocols=["majority"]',
    "brightness.levels=12",
    "objectives.reversed.masked=6",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("added") / "photos", train=12, val=4)


def mapet(photos: Path, *words: str) -> str:
    """Return what the command prints, in a process that knows what was added; all options and settings but paths are
    usual, and but jobs, whose processes know the package's files alone."""
    root = photos.parent / "data"
    environment = {**os.environ, "MAPET_DATA_ROOT": str(root), "MAPET_JOBS": "1"}
    command = [sys.executable, "-m", "tests.added", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def words(photos: Path) -> tuple[str, ...]:
    return ("reproduce", "demo", "images.kind=folder", f"images.path={photos}", *CHOSEN)


@pytest.fixture(scope="module")
def planned(photos: Path, words: tuple[str, ...]) -> str:
    return mapet(photos, "plan", *words)


@pytest.fixture(scope="module")
def reported(photos: Path, words: tuple[str, ...], planned: str) -> str:
    """Return the report, after the plan of a run that had not begun."""
    mapet(photos, *words)
    (page,) = (photos.parent / "data" / "report").glob("*/report.md")
    return page.read_text()


def test_a_plan_names_what_was_added(planned: str) -> None:
    names = [line.split()[0] for line in planned.splitlines() if line.startswith("  ")]
    for name in ("pretrain-reversed", "evaluate-majority-reversed", "evaluate-majority-scratch", "tokenize_images"):
        assert name in names, planned
    assert "extract_features" not in names, "this tokenizer brings its codes with it"


@pytest.mark.parametrize(
    "title",
    ["patch brightness", "Each of 4 × 4 patches gets one of 12 levels of brightness.", "Method: a thermometer."],  # noqa: RUF001
)
def test_a_report_says_of_an_added_tokenizer_what_its_entry_says(title: str, reported: str) -> None:
    assert title in reported


@pytest.mark.parametrize("title", ["Reversed MIM", "all at once and counted from the end, from the 10 shown"])
def test_a_report_says_of_an_added_objective_what_its_class_says(title: str, reported: str) -> None:
    assert title in reported


def test_a_report_calls_the_score_of_an_added_protocol_by_its_title(reported: str) -> None:
    assert "Majority class, share" in reported


def test_what_was_added_is_cached_like_everything_else(photos: Path, words: tuple[str, ...], reported: str) -> None:
    states = [line.split()[1] for line in mapet(photos, "plan", *words).splitlines() if line.startswith("  ")]
    assert states
    assert set(states) == {"cached"}
