import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import feature_sample, image_records
from storage import square_store as square_store_file
from storage.codebook_file import Codebook, read_codebook, write_codebook
from storage.errors import StoreInvalid
from storage.feature_sample import FeatureSample
from storage.image_index import SCAN_SCHEMA, ImageIndex, ImageStatus, image_id
from storage.shards import ShardFolder
from storage.square_store import SquareFormat, SquareStore, write_square_store
from storage.token_store import NO_TOKEN, SHARD_ROWS, STORE, TokenStore, write_token_store

RNG = np.random.default_rng(0)


def scanned(names: list[str], **columns: list[object]) -> pa.Table:
    defaults = {
        "name": names,
        "split": ["train"] * len(names),
        "label": [-1] * len(names),
        "container": names,
        "key": [""] * len(names),
        "offset": [0] * len(names),
        "row_group": [-1] * len(names),
        "row_in_group": [-1] * len(names),
        "bytes": [10] * len(names),
    }
    return pa.table({**defaults, **columns}, schema=SCAN_SCHEMA)


def build(table: pa.Table, *, kind: str = "folder", images_per_shard: int = 2) -> ImageIndex:
    return ImageIndex.build(table, classes=("cat", "dög"), source_kind=kind, images_per_shard=images_per_shard)


def test_rows_follow_the_canonical_names_whatever_the_order_of_the_scan(tmp_path: Path) -> None:
    index = build(scanned(["b", "a", "ü", "c"]))
    assert [entry.name for entry in index.entries(np.arange(4))] == ["a", "b", "c", "ü"]
    assert [shard.tolist() for shard in index.shards] == [[0, 1], [2, 3]]
    index.write(tmp_path)
    read = ImageIndex.read(tmp_path)
    assert read.table.equals(index.table)
    assert (read.classes, read.source_kind) == (("cat", "dög"), "folder")


def test_two_images_of_one_name_are_refused() -> None:
    with pytest.raises(StoreInvalid, match="two images are called 'a'"):
        build(scanned(["a", "b", "a"]))


def test_the_id_of_an_image_is_fixed_by_its_name() -> None:
    assert image_id("train/n01440764/n01440764_10026.JPEG") == 0x6E27995617950063
    assert build(scanned(["x", "a"])).image_ids.tolist() == [image_id("a"), image_id("x")]


def test_shards_of_a_shuffled_parquet_follow_its_row_groups() -> None:
    table = scanned(["a", "b", "c", "d"], container=["p", "q", "p", "q"], row_group=[1, 0, 0, 1], row_in_group=[0] * 4)
    index = build(table, kind="parquet")
    assert [shard.tolist() for shard in index.shards] == [[2, 0], [1, 3]]  # p:0, p:1 | q:0, q:1


def test_an_index_of_no_images_has_no_shards() -> None:
    assert build(scanned([])).shards == ()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.randoms(use_true_random=False))
def test_shards_partition_the_rows(images: int, per_shard: int, random: object) -> None:
    names = [f"{number:03d}" for number in range(images)]
    random.shuffle(names)  # type: ignore[attr-defined]
    groups = [number // 3 for number in range(images)]
    index = build(scanned(names, row_group=groups), kind="parquet", images_per_shard=per_shard)
    assert sorted(np.concatenate(index.shards).tolist()) == list(range(images))
    assert all(len(shard) <= per_shard for shard in index.shards)


PART = pa.schema([("row", pa.int64())])


def write_shard(shards: ShardFolder, shard: int, values: list[int]) -> None:
    with shards.write(shard, {"part": PART}) as writers:
        writers["part"].write_batch(pa.record_batch([pa.array(values, pa.int64())], schema=PART))


def test_a_shard_is_done_only_with_its_record_its_bytes_and_its_recipe(tmp_path: Path) -> None:
    shards = ShardFolder(tmp_path, "f1")
    assert not shards.is_done(0)
    write_shard(shards, 0, [1, 2])
    assert shards.is_done(0)
    assert shards.read("part", 0)["row"].to_pylist() == [1, 2]
    assert not ShardFolder(tmp_path, "f2").is_done(0)
    path = tmp_path / "part" / "00000.arrow"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert not shards.is_done(0)
    path.write_bytes(whole)
    (tmp_path / "units" / "00000.json").write_text("{}")
    assert not shards.is_done(0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5000), max_size=6))
def test_a_part_has_the_same_bytes_however_its_rows_were_handed_over(sizes: list[int]) -> None:
    values = np.arange(sum(sizes))
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        write_shard(ShardFolder(Path(one), "f"), 0, values.tolist())
        shards = ShardFolder(Path(other), "f")
        with shards.write(0, {"part": PART}) as writers:
            for chunk in np.split(values, np.cumsum(sizes)[:-1]):
                writers["part"].write_batch(pa.record_batch([pa.array(chunk, pa.int64())], schema=PART))
        assert shards.read("part", 0)["row"].to_pylist() == values.tolist()
        paths = [Path(folder, "part", "00000.arrow") for folder in (one, other)]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_shard_that_fails_leaves_neither_part_nor_record(tmp_path: Path) -> None:
    shards = ShardFolder(tmp_path, "f1")
    with pytest.raises(RuntimeError, match="killed"), shards.write(0, {"part": PART}):
        raise RuntimeError("killed")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def write_features(folder: Path, shards: list[list[tuple[int, int]]], width: int = 3, sampled: bool = True) -> None:
    store = ShardFolder(folder, "f")
    for number, places in enumerate(shards):
        rows, patches = (np.array(axis) for axis in zip(*places, strict=True))
        vectors = (rows[:, None] * 10 + patches[:, None] + np.arange(width) / 4).astype(np.float16)
        with store.write(number, {feature_sample.PART: feature_sample.schema(width)}) as writers:
            flags = np.full(len(rows), sampled)
            writers[feature_sample.PART].write_batch(feature_sample.record_batch(rows, patches, flags, vectors))


def test_a_feature_sample_reads_in_canonical_order_from_parts_in_any_order(tmp_path: Path) -> None:
    write_features(tmp_path, [[(5, 1), (2, 0), (2, 3)], [(0, 7), (4, 2)]])
    sample = FeatureSample(tmp_path)
    assert list(zip(sample.rows, sample.patches, strict=True)) == [(0, 7), (2, 0), (2, 3), (4, 2), (5, 1)]
    assert sample.read(0, 5)[:, 0].tolist() == [7, 20, 23, 42, 51]
    assert sample.read(2, 4).tolist() == [[23, 23.25, 23.5], [42, 42.25, 42.5]]
    assert (len(sample), sample.width) == (5, 3)


def test_an_empty_feature_sample_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreInvalid, match="the feature sample is empty"):
        FeatureSample(tmp_path)
    write_features(tmp_path, [[(0, 0)]], sampled=False)
    assert len(FeatureSample(tmp_path)) == 0


ATTRIBUTES = {"vocabulary": 8192, "grid": [2, 2]}


def make_tokens(images: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = RNG.integers(0, 8192, (images, 4)).astype(np.uint16)
    status = np.zeros(images, np.uint8)
    status[images // 2] = 4
    tokens[images // 2] = NO_TOKEN
    return tokens, status


def test_a_token_store_gives_back_what_scattered_parts_held(tmp_path: Path) -> None:
    images = SHARD_ROWS + 7
    tokens, status = make_tokens(images)
    order = RNG.permutation(images)
    parts = [(rows, tokens[rows], status[rows]) for rows in np.array_split(order, 5)]
    write_token_store(tmp_path, parts, images=images, patches=4, attributes=ATTRIBUTES)
    store = TokenStore(tmp_path)
    assert (store.load() == tokens).all()
    assert (store.status == status).all()
    assert store.attributes["grid"] == [2, 2]
    assert len(store) == images
    stored = zarr.open(tmp_path / STORE, mode="r")["tokens"]
    assert (stored.dtype, stored.shape, stored.chunks, stored.shards) == (
        np.uint16, (images, 4), (4096, 4), (SHARD_ROWS, 4)
    )  # fmt: skip
    assert not list(tmp_path.glob("*.tmp"))


def test_rows_left_out_or_written_twice_are_refused(tmp_path: Path) -> None:
    tokens, status = make_tokens(3)
    for rows, message in (([0, 2], "row 1 was written 0 times"), ([0, 1, 2, 2], "row 2 was written 2 times")):
        parts = [(np.array([row]), tokens[[row]], status[[row]]) for row in rows]
        with pytest.raises(StoreInvalid, match=message):
            write_token_store(tmp_path, parts, images=3, patches=4, attributes=ATTRIBUTES)


def write_store(folder: Path, tokens: np.ndarray, status: np.ndarray) -> TokenStore:
    parts = [(np.arange(len(tokens)), tokens, status)]
    write_token_store(folder, parts, images=len(tokens), patches=4, attributes=ATTRIBUTES)
    return TokenStore(folder)


def test_a_missing_shard_is_an_error_and_not_tokens(tmp_path: Path) -> None:
    store = write_store(tmp_path, *make_tokens(50))
    shard = next(path for path in (tmp_path / STORE / "tokens" / "c").rglob("*") if path.is_file())
    shard.unlink()
    with pytest.raises(StoreInvalid, match="expected ids below 8192, found"):
        store.load()


def test_ids_outside_the_vocabulary_and_tokens_of_bad_images_are_refused(tmp_path: Path) -> None:
    tokens, status = make_tokens(4)
    tokens[0, 0] = 8192
    with pytest.raises(StoreInvalid, match="row 0: expected ids below 8192"):
        write_store(tmp_path, tokens, status).load()
    tokens[0, 0], tokens[2] = 0, 5
    with pytest.raises(StoreInvalid, match="row 2: expected 65535"):
        write_store(tmp_path, tokens, status).load()


def test_the_decoded_copy_is_made_once_and_made_again_when_damaged(tmp_path: Path) -> None:
    tokens, status = make_tokens(50)
    store = write_store(tmp_path, tokens, status)
    cache, digest = tmp_path / "cache", "d" * 64
    first = store.decoded(cache, digest)
    assert isinstance(first, np.memmap)
    assert (first == tokens).all()
    path = cache / f"{digest[:16]}.npy"
    made = path.stat().st_mtime_ns
    store.decoded(cache, digest)
    assert path.stat().st_mtime_ns == made
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert (store.decoded(cache, digest) == tokens).all()


def test_a_folder_that_is_no_token_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreInvalid, match=r"found no tokens\.zarr"):
        TokenStore(tmp_path).load()


def test_a_codebook_comes_back_as_written(tmp_path: Path) -> None:
    codebook = Codebook(RNG.normal(size=(4, 3)).astype(np.float32), np.arange(4), [{"iteration": 1, "inertia": 2.5}])
    write_codebook(tmp_path, codebook)
    read = read_codebook(tmp_path)
    assert (read.centroids == codebook.centroids).all()
    assert read.sizes.tolist() == [0, 1, 2, 3]
    assert read.history == codebook.history


def test_a_codebook_with_wrong_arrays_is_refused(tmp_path: Path) -> None:
    write_codebook(tmp_path, Codebook(np.zeros((4, 3), np.float64), np.arange(4), []))
    with pytest.raises(StoreInvalid, match="expected float32 centroids"):
        read_codebook(tmp_path)
    write_codebook(tmp_path, Codebook(np.full((4, 3), np.nan, np.float32), np.arange(4), []))
    with pytest.raises(StoreInvalid, match="not finite"):
        read_codebook(tmp_path)


SQUARES = RNG.integers(0, 256, (5, 3, 4, 4), np.uint8)
ORDERS = {0: [3, 0, 4], 2: [1, 2]}  # the rows of two shards, as they were read; image 4 is bad


def square_store(folder: Path, orders: dict[int, list[int]]) -> SquareStore:
    shards = ShardFolder(folder, "f")
    for shard, rows in orders.items():
        with shards.write(shard, {"squares": SquareFormat(4), "images": image_records.SCHEMA}) as parts:
            for row in rows:
                parts["squares"].write_batch(SQUARES[[row]])
                record = {"row": row, "status": int(ImageStatus.DAMAGED if row == 4 else ImageStatus.VALID)}
                parts["images"].write_batch(pa.RecordBatch.from_pylist([record], image_records.SCHEMA))
    write_square_store(shards, orders, images=5, image_size=4, attributes={"image_index": "abc"})
    return SquareStore.open(folder)


def test_squares_are_found_by_row_whatever_the_order_of_their_files(tmp_path: Path) -> None:
    store = square_store(tmp_path, ORDERS)
    assert (len(store), store.image_size, store.index_digest) == (5, 4, "abc")
    assert store.status.tolist() == [0, 0, 0, 0, ImageStatus.DAMAGED]
    for one in (store, pickle.loads(pickle.dumps(store))):
        found = np.empty((5, 3, 4, 4), np.uint8)
        one.read(np.array([2, 0, 1, 3, 0]), found)
        assert np.array_equal(found, SQUARES[[2, 0, 1, 3, 0]])
    assert np.array_equal(np.load(tmp_path / "squares/00000.npy"), SQUARES[[3, 0, 4]])


def test_more_files_of_squares_than_may_be_open_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(square_store_file, "_MOST_MAPS", 1)
    store, found = square_store(tmp_path, ORDERS), np.empty((4, 3, 4, 4), np.uint8)
    store.read(np.arange(4), found)
    assert np.array_equal(found, SQUARES[:4])


def test_a_bad_image_has_no_square(tmp_path: Path) -> None:
    with pytest.raises(StoreInvalid, match="row 4 has no square: its image is DAMAGED"):
        square_store(tmp_path, ORDERS).read(np.array([4]), np.empty((1, 3, 4, 4), np.uint8))


@pytest.mark.parametrize(
    ("orders", "row"), [({0: [0, 1, 2]}, "row 3 is there 0"), ({0: [0, 1, 2, 3, 4], 1: [2]}, "row 2")]
)
def test_squares_of_every_row_are_there_once(tmp_path: Path, orders: dict[int, list[int]], row: str) -> None:
    with pytest.raises(StoreInvalid, match=row):
        square_store(tmp_path, orders)


def test_what_is_no_square_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreInvalid, match="expected a square store, found none"):
        SquareStore.open(tmp_path)
    store = square_store(tmp_path, ORDERS)
    np.save(tmp_path / "squares/00002.npy", SQUARES[:1])
    with pytest.raises(StoreInvalid, match=r"00002.npy: expected uint8 \[2, 3, 4, 4\], found uint8 \[1, 3, 4, 4\]"):
        store.read(np.array([1]), np.empty((1, 3, 4, 4), np.uint8))
