"""Our objectives against the official code's numbers; see `tests/reference/golden.py`."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.reference.golden import Difference, check_file, main

GOLDEN = Path(__file__).parents[1] / "data" / "golden_mapet.npz"


@pytest.fixture(scope="module")
def checked() -> tuple[list[Difference], list[str]]:
    return check_file(GOLDEN)


def test_every_number_of_the_official_code_is_matched(checked: tuple[list[Difference], list[str]]) -> None:
    differences, _ = checked
    assert not [d for d in differences if not d.passes]


def test_nothing_in_the_file_is_left_uncompared(checked: tuple[list[Difference], list[str]]) -> None:
    differences, left = checked
    assert not left
    assert len(differences) > 60


def test_float64_agrees_far_below_the_tolerance(checked: tuple[list[Difference], list[str]]) -> None:
    assert max(d.largest for d in checked[0] if "/grad/" not in d.array and d.tolerance == 1e-9) < 1e-13


@pytest.mark.parametrize("array", ["small/logits", "small/pim_loss", "small/grad/pos_embed", "small/content_visible"])
def test_a_changed_number_is_found(array: str, tmp_path: Path) -> None:
    with np.load(GOLDEN) as file:
        arrays = {name: file[name].copy() for name in file.files}
    flat = arrays[array].reshape(-1)
    flat[0] = not flat[0] if flat.dtype == bool else flat[0] + 1e-3
    np.savez(tmp_path / "changed.npz", **arrays)
    differences, _ = check_file(tmp_path / "changed.npz")
    assert [d.array for d in differences if not d.passes] == [array]


def test_the_command_says_by_its_exit_code_whether_a_file_matches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    shutil.copy(GOLDEN, good)
    with np.load(GOLDEN) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(bad, **{**arrays, "mask196/is_target": ~arrays["mask196/is_target"]})
    assert main([str(good)]) == 0
    assert main([str(good), str(bad)]) == 1
    assert "bad.npz: 67 arrays, 1 beyond tolerance" in capsys.readouterr().out
