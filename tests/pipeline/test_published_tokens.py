"""Tokens that are published as a data set, and joined again to somebody's own copy of the images."""

import json
import logging
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from pipeline.chains.graph import FlowResult
from pipeline.commands.found_inputs import find_index
from pipeline.commands.publish_tokens import import_tokens, publish_tokens
from pipeline.engine.errors import PipelineError
from pipeline.stages.import_tokens import joined_by_content
from pipeline.stages.tokenize_images import GivenTokens
from storage.artifact import Artifact
from storage.codebook_file import read_codebook
from storage.errors import StoreInvalid
from storage.image_index import ImageIndex, ImageStatus
from storage.image_records import recorded_checksums
from storage.published_tokens import published_schema
from storage.token_store import TokenStore
from tests.builds import build, make_photos, small_config, tokens_of


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "photos", train=8, val=3)


@pytest.fixture(scope="module")
def built(photos: Path) -> FlowResult:
    return build(small_config(photos, photos.parent / "clip"), photos.parent / "root")


@pytest.fixture(scope="module")
def published(built: FlowResult, photos: Path) -> Path:
    to = photos.parent / "my-tokens"
    publish_tokens(built["tokenize_images"].artifact.path, to, data_root=photos.parent)
    return to


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return somebody else's data root."""
    return tmp_path_factory.mktemp("root")


def imported(folder: Path, images: Path, root: Path, by: str = "name") -> Artifact:
    words = (f"images.path={images}", f"settings.data_root={root}")
    return import_tokens(folder, words, by=by)  # type: ignore[arg-type]


def names(made: Artifact, root: Path) -> list[str]:
    index = find_index(made, TokenStore(made.path).attributes["image_index"], root)
    found: list[str] = ImageIndex.read(index.path).table["name"].to_pylist()
    return found


# What is published


def test_a_hub_and_plain_pyarrow_read_the_same_tokens(published: Path, built: FlowResult, tmp_path: Path) -> None:
    index = ImageIndex.read(built["index_images"].artifact.path)
    loaded = datasets.load_dataset(str(published), cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 16, "val": 6}
    plain = pa.concat_tables(pq.read_table(path) for path in sorted((published / "data").glob("*.parquet")))
    tokens = tokens_of(built)
    for rows in (*loaded["train"], *loaded["val"]):
        row = index.table["name"].to_pylist().index(rows["name"])
        assert rows["tokens"] == tokens[row].tolist()
        assert (rows["label"], rows["split"]) == (index.labels[row], index.table["split"][row].as_py())
    assert plain["tokens"].to_pylist() == [*loaded["train"]["tokens"], *loaded["val"]["tokens"]]


def test_centroids_and_a_card_lie_beside_the_tokens(published: Path, built: FlowResult) -> None:
    centroids = load_file(published / "codebook.safetensors")["centroids"]
    assert np.array_equal(centroids, read_codebook(built["fit_codebook"].artifact.path).centroids)
    card, about = (published / "README.md").read_text(), json.loads((published / "tokens.json").read_text())
    digests = about["codebook"], about["encoder_weights"]
    assert all(word in card for word in ("split: train", "split: val", "k-CLIP", "4 x 4", "64 px", *digests))
    assert "license:" in card


def test_what_exists_is_not_written_over(published: Path, built: FlowResult, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="my-tokens exists; name a directory that does not"):
        publish_tokens(built["tokenize_images"].artifact.path, published, data_root=tmp_path)


# What is joined


@pytest.mark.parametrize("by", ["name", "content"])
def test_a_copy_of_the_images_gets_the_tokens_that_were_made(
    published: Path, photos: Path, built: FlowResult, root: Path, tmp_path: Path, by: str
) -> None:
    copy = shutil.copytree(photos, tmp_path / "copy")
    made = imported(published, copy, root, by)
    assert np.array_equal(TokenStore(made.path).load(), tokens_of(built))
    assert GivenTokens(made.path).read().digest == made.digest, "a pre-training takes it"
    assert made.summary["perplexity"] == built["tokenize_images"].artifact.summary["perplexity"]
    _, checked = recorded_checksums(made.path, 22)
    assert checked.all() == (by == "content"), "readers hold images to bytes that were compared, and to no others"
    assert imported(published, copy, root, by).digest == made.digest


def test_renamed_images_are_found_by_their_contents(
    published: Path, photos: Path, built: FlowResult, root: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own" / "train"
    own.mkdir(parents=True)
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        shutil.copy(path, own / f"{(number * 7) % 22:02d}.jpg")
    made = imported(published, own.parent, root, "content")
    tokens = TokenStore(made.path).load()
    assert sorted(map(tuple, tokens)) == sorted(map(tuple, tokens_of(built)))
    with pytest.raises(PipelineError, match=r"not one of these images is among the 22 .*here is 'train/00.jpg'"):
        imported(published, own.parent, root)


def test_images_without_published_tokens_are_invalid_and_said(
    published: Path, photos: Path, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(photos, tmp_path / "copy")
    (copy / "train" / "bloom" / "0000.jpg").rename(copy / "train" / "bloom" / "new.jpg")
    with (copy / "train" / "bloom" / "0001.jpg").open("ab") as file:
        file.write(b"more")
    with caplog.at_level(logging.INFO, "mapet.stages"):
        made = imported(published, copy, root)
    said = "\n".join(caplog.messages)
    assert "21 of 22 images have published tokens, found by name" in said
    assert "1 images have none and are marked invalid, the first is train/bloom/new.jpg" in said
    assert "1 published images are not here" in said
    assert "1 images have published names and another number of bytes" in said
    store = TokenStore(made.path)
    wrong = [name for name, status in zip(names(made, root), store.status, strict=True) if status]
    assert wrong == ["train/bloom/new.jpg"]
    assert (store.load()[store.status != ImageStatus.VALID] == 65_535).all()


def test_equal_images_with_different_tokens_have_none() -> None:
    rows = [("a", 5, 1, [1, 2]), ("b", 5, 1, [1, 3]), ("c", 6, 1, [4, 4]), ("d", 6, 1, [4, 4])]
    blank = {"split": "train", "label": -1, "width": 1, "height": 1}
    published = pa.Table.from_pylist(
        [{"name": name, "bytes": size, "crc32c": crc, "tokens": tokens, **blank} for name, size, crc, tokens in rows],
        schema=published_schema(2),
    )
    here = ImageIndex(pa.table({"bytes": [5, 6, 7, 6]}), (), "folder")
    found = joined_by_content(published, here, pa.array([1, 1, 1, None], pa.uint32()))
    assert found.tolist() == [-1, 2, -1, -1]


# What is damaged


def test_a_damaged_file_is_refused_and_an_edited_card_is_not(
    published: Path, photos: Path, root: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(published, tmp_path / "copy")
    (copy / "README.md").write_text("a licence")
    imported(copy, photos, root)
    path = next((copy / "data").glob("train*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreInvalid, match=r"bytes changed.*; copy or download the directory again"):
        imported(copy, photos, root)
    with pytest.raises(StoreInvalid, match=r"expected published tokens with tokens.json"):
        imported(photos, photos, root)
