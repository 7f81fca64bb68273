import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.demo_images import (
    CLASS_FOLDERS,
    CLASS_WORDS,
    DemoSources,
    columns_of,
    image_names,
    render,
    render_by_name,
    render_demo_images,
)
from pipeline.data.demo_options import DemoImagesOptions
from pipeline.engine.errors import PipelineError

FEW = DemoImagesOptions(image_size=32, renderings=2, limit=40)


@pytest.fixture(scope="module")
def sources() -> DemoSources:
    return DemoSources.load()


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _flat_sources(sources: DemoSources) -> DemoSources:
    """Return photographs that are black where train may look and white where val may."""
    height, width, _ = sources.photographs[0].shape
    marked = np.zeros((height, width, 3), dtype=np.uint8)
    first, last = columns_of("val", width)
    marked[:, first:last] = 255
    return DemoSources(digits=sources.digits, labels=sources.labels, photographs=(marked, marked))


def test_the_split_is_stratified_and_always_the_same(sources: DemoSources) -> None:
    train, val = (np.array([split == wanted for split in sources.splits]) for wanted in ("train", "val"))
    assert (train.sum(), val.sum()) == (1297, 500)
    assert np.bincount(sources.labels[val]).tolist() == [50, 51, 49, 51, 50, 51, 50, 50, 48, 50]
    assert np.flatnonzero(val)[:12].tolist() == [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 35, 39]


def test_no_digit_is_in_both_splits_whatever_the_seed(sources: DemoSources) -> None:
    for seed in (0, 1):
        names = [name.split("/") for name in image_names(sources, DemoImagesOptions(seed=seed))]
        train, val = ({file[:4] for split, _, file in names if split == wanted} for wanted in ("train", "val"))
        assert not train & val
        assert len(train | val) == 1797


def test_backgrounds_come_from_disjoint_parts_of_the_photographs(sources: DemoSources) -> None:
    marked = _flat_sources(sources)
    for number in range(60):
        for rendering in range(3):
            drawn = render(marked, number, rendering, FEW)
            background = drawn.pixels[drawn.alpha == 0]
            assert len(background)
            if sources.splits[number] == "train":
                assert background.max() == 0
            else:
                assert len(np.unique(background)) == 1
                assert background.min() > 0


def test_rendering_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = render_demo_images(tmp_path / "a", FEW), render_demo_images(tmp_path / "b", FEW)
    assert first == second
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")


def test_every_rendering_of_a_digit_looks_different(tmp_path: Path) -> None:
    render_demo_images(tmp_path, FEW)
    hashes = _hashes(tmp_path)
    assert len(set(hashes.values())) == len(hashes)


def test_an_interrupted_tree_is_completed(tmp_path: Path) -> None:
    render_demo_images(tmp_path, FEW)
    complete = _hashes(tmp_path)
    files = sorted(path for path in tmp_path.rglob("*.png"))
    files[0].unlink()
    files[1].write_bytes(b"half")
    render_demo_images(tmp_path, FEW)
    assert _hashes(tmp_path) == complete


def test_the_tree_is_an_image_folder_whose_classes_sort_by_digit(tmp_path: Path, sources: DemoSources) -> None:
    written = render_demo_images(tmp_path, FEW)
    assert written.classes == CLASS_FOLDERS == tuple(f"{digit}_{CLASS_WORDS[digit]}" for digit in range(10))
    for split, count in written.counts.items():
        assert sorted(path.name for path in (tmp_path / split).iterdir()) == list(CLASS_FOLDERS)
        files = list((tmp_path / split).rglob("*.png"))
        assert len(files) == count > 0
        for path in files:
            assert int(path.parent.name[0]) == sources.labels[int(path.name[:4])]
            with Image.open(path) as image:
                assert (image.mode, image.size) == ("RGB", (32, 32))


def test_the_mask_shows_where_a_written_image_was_painted(tmp_path: Path, sources: DemoSources) -> None:
    render_demo_images(tmp_path, FEW)
    for name in ("train/3_three/0003_1.png", "val/1_one/0011_0.png"):
        drawn = render_by_name(sources, name, FEW)
        with Image.open(tmp_path / name) as image:
            np.testing.assert_array_equal(np.asarray(image), drawn.pixels)
        opaque = drawn.pixels[drawn.alpha == 1]
        assert len(opaque) > 10
        assert len(np.unique(opaque, axis=0)) == 1  # one colour, nothing of the photograph
        assert 0 < drawn.alpha.mean() < 0.5


@pytest.mark.parametrize("image_size", [16, 64, 160])
def test_digits_are_never_cut_by_the_image_border(sources: DemoSources, image_size: int) -> None:
    options = DemoImagesOptions(image_size=image_size)
    for number in range(40):
        whole = sources.digits[number].copy()
        drawn = render(sources, number, 0, options).alpha
        share = drawn.sum() / image_size**2
        smallest, largest = 0.475**2, 0.75**2  # of the image, covered by the digit's cell
        assert 0.4 * whole.mean() * smallest < share < 1.6 * whole.mean() * largest


def test_another_seed_draws_other_images_of_the_same_digits(sources: DemoSources) -> None:
    one, other = (render(sources, 0, 0, DemoImagesOptions(seed=seed)) for seed in (0, 1))
    assert (one.pixels != other.pixels).any()
    names, others = (list(image_names(sources, DemoImagesOptions(seed=seed))) for seed in (0, 1))
    assert names == others


def test_images_of_other_options_are_refused_by_name(tmp_path: Path) -> None:
    render_demo_images(tmp_path, FEW)
    with pytest.raises(PipelineError, match=r"holds 28 files .* train/0_zero/0000_1\.png"):
        render_demo_images(tmp_path, FEW.model_copy(update={"renderings": 1}))


@pytest.mark.parametrize("name", ["train/3_three/0004_0.png", "val/3_three/0003_0.png", "train/9999_0.png", "cat.png"])
def test_a_name_that_the_demo_never_wrote_has_no_mask(sources: DemoSources, name: str) -> None:
    with pytest.raises(PipelineError, match="not an image of the demo"):
        render_by_name(sources, name, FEW)
