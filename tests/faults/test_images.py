"""Data sets as they are found: files of every odd kind anywhere, names of every kind, too few images, or none."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from models.errors import ModelError
from pipeline.chains.graph import FlowResult
from pipeline.engine.errors import PipelineError
from storage.errors import StorageError
from storage.image_index import ImageIndex, ImageStatus
from storage.image_records import read_image_records
from storage.token_store import NO_TOKEN, TokenStore
from tests.builds import build, make_photos, small_config, tokens_of
from tests.pipeline.odd_images import readable, unreadable
from tests.tiny_clip import write_tiny_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    write_tiny_clip(folder)
    return folder


def statuses(made: FlowResult) -> dict[str, ImageStatus]:
    index = ImageIndex.read(made["index_images"].artifact.path)
    found = TokenStore(made["tokenize_images"].artifact.path).status
    return {index.name(row): ImageStatus(int(found[row])) for row in range(len(index))}


def test_odd_and_broken_files_at_every_place_of_a_shard_are_what_they_are(clip: Path, tmp_path: Path) -> None:
    """Shards of 7 images, so that broken ones are first, last, in the middle, and a whole shard."""
    photos = make_photos(tmp_path / "photos", train=12, val=3)
    odd, broken = readable(), unreadable()
    for folder, files in (("train/bloom", odd), ("train/aardvark", broken), ("val/zebra", broken)):
        (photos / folder).mkdir(exist_ok=True)
        for name, file in files.items():
            (photos / folder / f"{name}.jpg").write_bytes(file.data)
    for split, name in (("val", "aardvark"), ("train", "zebra")):  # every class has a folder in both
        (photos / split / name).mkdir()
        shutil.copy(photos / "train/roof/0000.jpg", photos / split / name / "only.jpg")
    made = build(small_config(photos, clip, "images.images_per_shard=7"), tmp_path / "root", workers=2)
    found = statuses(made)
    for folder, files in (("train/bloom", odd), ("train/aardvark", broken), ("val/zebra", broken)):
        for name, file in files.items():
            assert found[f"{folder}/{name}.jpg"] == file.status, name
    assert len([one for one in found.values() if one == ImageStatus.VALID]) == 30 + 2 + len(odd)
    tokens = tokens_of(made)
    bad = np.array([status != ImageStatus.VALID for status in found.values()])
    assert bad[0], "the first row is a broken one"
    assert bad[-1], "and the last"
    assert ((tokens == NO_TOKEN).all(1) == bad).all()
    records = read_image_records(made["tokenize_images"].artifact.path).to_pylist()
    assert all(bool(record["reason"]) == bool(is_bad) for record, is_bad in zip(records, bad, strict=True))
    assert build(small_config(photos, clip, "images.images_per_shard=7"), tmp_path / "root").all_cached


def test_names_in_any_alphabet_and_very_long_paths_are_kept(clip: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=8, val=2)
    odd = [
        "图像 №1.jpg",
        "naïve café.jpg",
        "مثال.jpg",
        "🐈‍⬛.jpg",
        "a" * 240 + ".jpg",
        "quote'\"`$(x);&|.jpg",
        "-rf.jpg",
    ]
    for number, name in enumerate(odd):
        shutil.copy(photos / f"train/roof/{number:04d}.jpg", photos / "train/bloom" / name)
    deep = photos / "train/roof" / Path(*["d" * 100] * 20)
    deep.mkdir(parents=True)
    shutil.copy(photos / "train/roof/0001.jpg", deep / "deep.jpg")
    found = statuses(build(small_config(photos, clip), tmp_path / "root", workers=1))
    assert {f"train/bloom/{name}" for name in odd} <= found.keys()
    assert (deep / "deep.jpg").relative_to(photos).as_posix() in found
    assert set(found.values()) == {ImageStatus.VALID}


def test_two_spellings_of_one_name_are_refused(clip: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=8, val=2)
    for name in ("caf\u00e9.jpg", "cafe\u0301.jpg"):  # composed and decomposed: one name in Unicode's normal form
        shutil.copy(photos / "train/roof/0000.jpg", photos / "train/bloom" / name)
    with pytest.raises(StorageError, match="caf"):
        build(small_config(photos, clip), tmp_path / "root")


def test_a_data_set_that_changed_makes_a_new_index_and_tokens_and_the_old_ones_stay(clip: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=8, val=2)
    first = build(small_config(photos, clip), tmp_path / "root")
    (photos / "train/roof/0003.jpg").unlink()
    second = build(small_config(photos, clip), tmp_path / "root")
    assert not any(result.cached for result in second.results)
    assert len(tokens_of(second)) == len(tokens_of(first)) - 1
    shutil.copy(photos / "train/roof/0002.jpg", photos / "train/roof/0003.jpg")
    assert len(tokens_of(build(small_config(photos, clip), tmp_path / "root"))) == len(tokens_of(first))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (0, r"no image"),
        (1, r"codebook\.vocabulary=32: .* gives 8 features to cluster; lower it"),
    ],
)
def test_no_image_and_a_single_one_are_refused_with_a_sentence(
    images: int, message: str, clip: Path, tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "photos", train=1, val=1)
    for path in sorted(photos.rglob("*.jpg"))[images:]:
        path.unlink()
    with pytest.raises((PipelineError, ModelError, StorageError), match=message):
        build(small_config(photos, clip), tmp_path / "root")


def test_one_image_is_enough_for_as_many_centroids_as_it_has_patches(clip: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=1, val=1)
    for path in sorted(photos.rglob("*.jpg"))[1:]:
        path.unlink()
    words = ("codebook.vocabulary=4", "features.sample_fraction=1.0", 'features.splits=["train"]')
    made = build(small_config(photos, clip, *words), tmp_path / "root")
    assert tokens_of(made).shape == (1, 16)


def test_no_image_of_all_can_be_read(clip: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=3, val=1)
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"<html>")
    with pytest.raises(PipelineError, match="not one is good"):
        build(small_config(photos, clip), tmp_path / "root")
