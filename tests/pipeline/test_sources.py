"""Image sources: one set of images is the same set in every layout, and what cannot be used is said."""

import contextlib
import csv
import io
import json
import os
import pickle
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.base import Scan
from pipeline.data.sources.kinds import open_source
from pipeline.engine.errors import PipelineError
from storage.image_index import SCAN_SCHEMA, ImageEntry, ImageIndex
from tests.pipeline.odd_images import jpeg

CLASSES = ("n01440764", "n01443537", "n02105855")
# name -> bytes, as ILSVRC's tree calls them: 24 training and 6 validation images
IMAGES = {
    **{f"train/{wnid}/{wnid}_{i}.JPEG": jpeg(16 + i, 16) for wnid in CLASSES for i in range(8)},
    **{f"val/{wnid}/ILSVRC2012_val_{n:08d}.JPEG": jpeg(30 + n, 16) for n, wnid in enumerate(CLASSES * 2)},
}
LABELS = {name: CLASSES.index(name.split("/")[1]) for name in IMAGES}


def scan(root: Path, kind: str = "folder", **options) -> Scan:
    return open_source(ImageSourceOptions(kind=kind, path=str(root), **options)).scan()


def rows(found: Scan) -> dict[str, dict]:
    assert found.table.schema == SCAN_SCHEMA
    return {row["name"]: row for row in found.table.to_pylist()}


def contents(root: Path, kind: str = "folder", **options) -> dict[str, bytes]:
    """Return canonical name to bytes, read in the index's fast order."""
    source = open_source(ImageSourceOptions(kind=kind, path=str(root), **options))
    found = source.scan()
    index = ImageIndex.build(found.table, classes=found.classes, source_kind=kind, images_per_shard=7)
    reader = pickle.loads(pickle.dumps(source)).reader()
    read = {entry.name: reader.read(entry) for shard in index.shards for entry in index.entries(shard)}
    reader.close()
    return read


def write_files(root: Path, *paths: str, content: bytes = b"image") -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def as_folder(root: Path) -> Path:
    for name, data in IMAGES.items():
        write_files(root, name, content=data)
    return root


def hub_path(name: str) -> str:
    _, wnid, file_name = name.split("/")
    return file_name.replace(".JPEG", f"_{wnid}.JPEG")


def write_parquet(path: Path, images: list[dict], labels: list, *, names: tuple[str, ...] = (), group: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, image_type), "label": labels})
    if names:
        features = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, row_group_size=group)


def as_parquet(root: Path) -> Path:
    """Write the images shuffled over several files of several row groups, named as on the hub."""
    for split, ours, files in (("train", "train", 3), ("validation", "val", 2)):
        names = [name for name in IMAGES if name.startswith(ours)]
        order = np.array_split(np.random.default_rng(0).permutation(len(names)), files)
        for number, part in enumerate(order):
            chosen = [names[i] for i in part]
            images = [{"bytes": IMAGES[name], "path": hub_path(name)} for name in chosen]
            path = root / "data" / f"{split}-{number:05d}-of-{files:05d}.parquet"
            write_parquet(path, images, [LABELS[name] for name in chosen], names=CLASSES)
    return root


def write_tar(path: Path, members: dict[str, bytes], **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def as_tars(root: Path) -> Path:
    for shard in range(3):
        for split, theirs in (("train", "train"), ("val", "validation")):
            names = [name for name in IMAGES if name.startswith(split)][shard::3]
            members = {}
            for name in names:
                member = name.removeprefix(f"{split}/")
                members[member] = IMAGES[name]
                members[member.replace(".JPEG", ".cls")] = str(LABELS[name]).encode()
            write_tar(root / f"imagenet1k-{theirs}-{shard:04d}.tar", members)
    write_files(root, "classes.txt", content="\n".join(CLASSES).encode())
    return root


LAYOUTS = {"folder": as_folder, "parquet": as_parquet, "webdataset": as_tars}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_same_images_have_the_same_names_labels_and_bytes_in_every_layout(kind, tmp_path):
    root = LAYOUTS[kind](tmp_path)
    found = scan(root, kind)
    assert found.classes == CLASSES
    assert found.notes == ()
    assert {name: row["label"] for name, row in rows(found).items()} == LABELS
    assert {name: row["split"] for name, row in rows(found).items()} == {name: name.split("/")[0] for name in IMAGES}
    assert contents(root, kind) == IMAGES


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_an_entry_says_of_its_place_is_true(kind, tmp_path):
    for name, row in rows(scan(LAYOUTS[kind](tmp_path), kind)).items():
        container = tmp_path / row["container"]
        assert container.is_file()
        assert row["bytes"] == (-1 if kind == "parquet" else len(IMAGES[name]))
        if kind != "parquet":
            assert container.read_bytes()[row["offset"] :][: row["bytes"]] == IMAGES[name]
            assert (row["row_group"], row["row_in_group"]) == (-1, -1)


# --- folders


def test_other_names_of_splits_give_the_same_canonical_names(tmp_path):
    write_files(tmp_path, "Training/a/1.jpg", "validation/a/2.jpg", "testing/3.jpg")
    assert {name: row["container"] for name, row in rows(scan(tmp_path)).items()} == {
        "train/a/1.jpg": "Training/a/1.jpg",
        "val/a/2.jpg": "validation/a/2.jpg",
        "test/3.jpg": "testing/3.jpg",
    }


def test_without_splits_all_is_train_and_names_have_no_prefix(tmp_path):
    found = scan(write_files(tmp_path, "cat/1.jpg", "dog/deep/er/2.PNG"))
    assert {name: (row["split"], row["label"]) for name, row in rows(found).items()} == {
        "cat/1.jpg": ("train", 0),
        "dog/deep/er/2.PNG": ("train", 1),
    }
    assert found.classes == ("cat", "dog")


def test_a_split_can_be_given_to_a_folder_that_tells_none(tmp_path):
    found = scan(write_files(tmp_path, "cat/1.jpg"), split="val")
    assert {name: row["split"] for name, row in rows(found).items()} == {"val/cat/1.jpg": "val"}


def test_a_split_that_is_given_but_not_needed_is_noted(tmp_path):
    found = scan(write_files(tmp_path, "train/cat/1.jpg"), split="val")
    assert list(rows(found)) == ["train/cat/1.jpg"]
    assert "images.split=val is not used" in found.notes[0]


def test_images_outside_the_splits_are_refused_unless_a_split_is_given(tmp_path):
    write_files(tmp_path, "train/car/1.jpg", "plane/2.jpg", "plane/3.jpg")
    with pytest.raises(PipelineError, match=r"2 images \(such as 'plane/.*images.split=train"):
        scan(tmp_path)
    assert "train/plane/2.jpg" in rows(scan(tmp_path, split="train"))


def test_a_flat_folder_has_no_labels_and_says_so(tmp_path):
    found = scan(write_files(tmp_path, "1.jpg", "2.jpg"))
    assert [row["label"] for row in rows(found).values()] == [-1, -1]
    assert found.classes == ()
    assert "train: 2 of 2 images have no label" in found.notes[0]
    assert "images.labels_csv" in found.notes[0]


def test_classes_are_sorted_over_all_splits(tmp_path):
    found = scan(write_files(tmp_path, "train/b/1.jpg", "train/c/1.jpg", "val/a/1.jpg", "val/c/1.jpg"))
    assert found.classes == ("a", "b", "c")
    assert "val/ has 1 classes (such as 'a') that train/ lacks" in found.notes[0]


def test_directories_of_val_that_are_no_classes_of_train_are_no_labels(tmp_path):
    found = scan(write_files(tmp_path, "train/n1/images/1.jpg", "val/images/1.jpg"))  # Tiny ImageNet
    assert found.classes == ("n1",)
    assert rows(found)["val/images/1.jpg"]["label"] == -1
    assert "none of train's classes" in found.notes[0]


def write_kaggle(top: Path, lines: list[tuple[str, str]]) -> Path:
    root = write_files(
        top / "ILSVRC/Data/CLS-LOC", "train/n1/n1_1.JPEG", "train/n2/n2_1.JPEG", "val/v_1.JPEG", "val/v_2.JPEG"
    )
    with open(top / "LOC_val_solution.csv", "w", newline="") as file:
        csv.writer(file).writerows([("ImageId", "PredictionString"), *lines])
    return root


KAGGLE_LINES = [("v_1", "n2 1 2 3 4 n2 5 6 7 8"), ("v_2", "n1 0 0 9 9")]


@pytest.mark.parametrize("below", [".", "ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_tree_gets_its_val_labels_from_the_csv_wherever_the_path_points(tmp_path, below):
    write_kaggle(tmp_path, KAGGLE_LINES)
    found = scan(tmp_path / below)
    labels = {name: row["label"] for name, row in rows(found).items()}
    assert labels == {"train/n1/n1_1.JPEG": 0, "train/n2/n2_1.JPEG": 1, "val/v_1.JPEG": 1, "val/v_2.JPEG": 0}
    assert found.notes == ()
    assert set(contents(tmp_path / below)) == set(labels)


def test_images_that_the_csv_lacks_are_counted(tmp_path):
    found = scan(write_kaggle(tmp_path, KAGGLE_LINES[:1]))
    assert "val: 1 of 2 images have no label" in found.notes[0]


def test_a_given_csv_is_preferred_and_its_foreign_classes_are_noted(tmp_path):
    root = write_kaggle(tmp_path, KAGGLE_LINES)
    other = tmp_path / "other.csv"
    other.write_text("\ufeffImageId,PredictionString\nv_1,n9 1 1 1 1\nv_2,n1 1 1 1 1\n", encoding="utf-8")
    found = scan(root, labels_csv=str(other))
    assert found.classes == ("n1", "n2", "n9")
    assert "1 classes of the labels file (such as 'n9')" in found.notes[0]


@pytest.mark.parametrize("text", ["", "id,label\nv_1,n2\n", "ImageId,PredictionString\nv_1,\n"])
def test_a_csv_of_another_layout_is_refused(tmp_path, text):
    write_files(tmp_path, "1.jpg")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(PipelineError, match="expected the columns ImageId,PredictionString"):
        scan(tmp_path, labels_csv=str(tmp_path / "labels.csv"))


def test_a_csv_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(PipelineError, match=r"labels_csv=.*cannot be read"):
        scan(write_files(tmp_path, "1.jpg"), labels_csv="/nowhere.csv")


def test_hidden_files_and_other_extensions_are_left_out(tmp_path):
    write_files(tmp_path, "a/.hidden.jpg", ".cache/b.jpg", "a/notes.txt", "a/jpg")
    write_files(tmp_path, *(f"a/1.{ending}" for ending in ("jpg", "JPEG", "Png", "webp", "bmp", "gif", "tif", "TIFF")))
    assert len(rows(scan(tmp_path))) == 8


def test_an_empty_file_is_listed_because_it_must_become_a_bad_image(tmp_path):
    assert rows(scan(write_files(tmp_path, "a/1.jpg", content=b"")))["a/1.jpg"]["bytes"] == 0


def test_a_broken_link_is_listed_and_cannot_be_read(tmp_path):
    write_files(tmp_path, "a/1.jpg")
    (tmp_path / "a/2.jpg").symlink_to("nowhere.jpg")
    assert rows(scan(tmp_path))["a/2.jpg"]["bytes"] == -1
    with pytest.raises(FileNotFoundError):
        contents(tmp_path)


def test_a_pipe_is_not_an_image(tmp_path):
    write_files(tmp_path, "a/1.jpg")
    os.mkfifo(tmp_path / "a/2.jpg")
    assert list(rows(scan(tmp_path))) == ["a/1.jpg"]


def test_linked_directories_are_followed_but_not_in_circles(tmp_path):
    elsewhere = write_files(tmp_path / "elsewhere", "1.jpg")
    root = write_files(tmp_path / "root", "a/1.jpg")
    (root / "b").symlink_to(elsewhere)
    (root / "c").symlink_to(elsewhere)
    (root / "a/up").symlink_to(root)
    (root / "a/self").symlink_to("self")
    assert set(rows(scan(root))) == {"a/1.jpg", "b/1.jpg", "c/1.jpg"}


def test_names_may_have_unicode_and_line_breaks_and_are_normalised(tmp_path):
    decomposed = "cafe\u0301"
    write_files(tmp_path, f"{decomposed}/a b\nc'\".jpg", "日本/🐈.jpg", content=b"picture")
    found = scan(tmp_path)
    assert set(rows(found)) == {"café/a b\nc'\".jpg", "日本/🐈.jpg"}
    assert found.classes == ("café", "日本")
    assert set(contents(tmp_path).values()) == {b"picture"}


def test_a_class_with_a_line_break_is_refused(tmp_path):
    with pytest.raises(PipelineError, match=r"class name 'a\\nb'"):
        scan(write_files(tmp_path, "a\nb/1.jpg"))


def test_a_file_name_that_is_not_utf8_is_refused_in_printable_words(tmp_path):
    (tmp_path / "a").mkdir()
    with open(os.fsencode(tmp_path) + b"/a/caf\xe9.jpg", "wb"):
        pass
    with pytest.raises(PipelineError, match=r"caf\\xe9.jpg.*not UTF-8") as error:
        scan(tmp_path)
    str(error.value).encode()


@contextlib.contextmanager
def unprivileged():
    """Root may list anything; be nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_directory_that_cannot_be_listed_is_an_error_not_a_gap():
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's own are closed to others
        root = write_files(Path(name), "a/1.jpg", "b/1.jpg")
        root.chmod(0o755)
        (root / "b").chmod(0)
        with unprivileged(), pytest.raises(PipelineError, match=r"/b: the directory cannot be listed \(Permission"):
            scan(root)
        (root / "b").chmod(0o755)


# --- Parquet


def test_scanning_parquet_never_reads_the_images(tmp_path):
    write_parquet(tmp_path / "train.parquet", [{"bytes": jpeg(), "path": "a/1.jpg"}] * 2, [0, 1])
    columns = pq.ParquetFile(tmp_path / "train.parquet").metadata.row_group(0)
    chunk = next(c for c in map(columns.column, range(3)) if c.path_in_schema == "image.bytes")
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    with open(tmp_path / "train.parquet", "r+b") as file:
        file.seek(start)
        file.write(b"\xff" * chunk.total_compressed_size)
    found = scan(tmp_path, "parquet")
    assert found.table["label"].to_pylist() == [0, 1]
    with pytest.raises(OSError, match="deserialize"):
        open_source(ImageSourceOptions(kind="parquet", path=str(tmp_path))).reader().read(
            ImageEntry(0, "train/a/1.jpg", "train.parquet", "a/1.jpg", 0, 0, 0, -1)
        )


def test_parquet_paths_become_canonical_names(tmp_path):
    paths = ["n01440764_10026_n01440764.JPEG", "sub/x_n01440764.JPEG", "plain.png", None]
    write_parquet(tmp_path / "val/part-0.parquet", [{"bytes": b"x", "path": path} for path in paths], [0] * 4)
    assert rows(scan(tmp_path, "parquet")).keys() == {
        "val/n01440764/n01440764_10026.JPEG",
        "val/sub/x_n01440764.JPEG",
        "val/plain.png",
        "val/part-0/00000003",
    }


def test_a_plain_binary_column_without_labels_is_enough(tmp_path):
    pq.write_table(pa.table({"image": [b"a", b"b", b"c"]}), tmp_path / "mine.parquet", row_group_size=2)
    assert contents(tmp_path, "parquet") == {"mine/00000000": b"a", "mine/00000001": b"b", "mine/00000002": b"c"}
    assert scan(tmp_path, "parquet").table["label"].to_pylist() == [-1, -1, -1]


def test_labels_without_names_are_called_by_number_and_missing_ones_are_unknown(tmp_path):
    images = [{"bytes": b"x", "path": f"{i}.jpg"} for i in range(4)]
    write_parquet(tmp_path / "a.parquet", images, [2, 0, -1, None])
    found = scan(tmp_path, "parquet")
    assert found.classes == ("0", "1", "2")
    assert [row["label"] for _, row in sorted(rows(found).items())] == [2, 0, -1, -1]
    assert "2 of 4" in found.notes[0]


def test_a_row_without_bytes_cannot_be_read(tmp_path):
    write_parquet(tmp_path / "a.parquet", [{"bytes": None, "path": "1.jpg"}, None], [0, 0])
    for name in ("1.jpg", "a/00000001"):
        assert name in rows(scan(tmp_path, "parquet"))
    with pytest.raises(OSError, match="has no bytes"):
        contents(tmp_path, "parquet")


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"img": [b"x"], "mask": [b"x"], "label": [0]}, "img: binary, mask: binary, label: int64"),
        ({"image": ["x.jpg"]}, "image: string"),
        ({"image": [{"path": "x"}]}, "image: struct<path: string>"),
        ({"image": [b"x"], "label": [0.5]}, "label: double"),
    ],
)
def test_other_columns_are_refused_with_what_was_found_and_expected(tmp_path, columns, found):
    pq.write_table(pa.table(columns), tmp_path / "odd.parquet")
    with pytest.raises(PipelineError, match=r"odd.parquet: found columns .*expected image: struct") as error:
        scan(tmp_path, "parquet")
    assert found in str(error.value)


def test_a_truncated_parquet_file_is_refused(tmp_path):
    as_parquet(tmp_path)
    path = tmp_path / "data/train-00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PipelineError, match=r"train-00001-of-00003.parquet: not a readable Parquet file"):
        scan(tmp_path, "parquet")


def test_files_of_two_data_sets_or_labels_beyond_the_names_are_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", [{"bytes": b"x", "path": "1"}], [5], names=("a", "b"))
    with pytest.raises(PipelineError, match="label 5 is none of the 2 classes"):
        scan(tmp_path, "parquet")
    write_parquet(tmp_path / "val.parquet", [{"bytes": b"x", "path": "1"}], [0], names=("b", "c"))
    with pytest.raises(PipelineError, match="not the 2 of the files before it"):
        scan(tmp_path, "parquet")


def test_a_number_that_can_be_no_class_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", [{"bytes": b"x", "path": "1"}, {"bytes": b"x", "path": "2"}], [0, 10**15])
    with pytest.raises(PipelineError, match=r"the label 1000000000000000 would make .* give names as labels"):
        scan(tmp_path, "parquet")


def test_the_reader_may_be_closed_and_used_again_and_in_any_order(tmp_path):
    source = open_source(ImageSourceOptions(kind="parquet", path=str(as_parquet(tmp_path))))
    found = source.scan()
    index = ImageIndex.build(found.table, classes=found.classes, source_kind="parquet", images_per_shard=100)
    reader = source.reader()
    for entry in index.entries(np.random.default_rng(1).permutation(len(index))):
        assert reader.read(entry) == IMAGES[entry.name]
        reader.close()


# --- tar shards


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_unicode_member_names_are_read(tmp_path, tar_format):
    name = f"train/{'long' * 60}/日本.jpg"
    write_tar(tmp_path / "a.tar", {name: b"picture", "./train/b/1.jpg": b"other"}, format=tar_format)
    assert contents(tmp_path, "webdataset") == {name: b"picture", "train/b/1.jpg": b"other"}


def labelled(tmp_path: Path, members: dict[str, bytes], **options) -> tuple[tuple[str, ...], dict[str, int]]:
    write_tar(tmp_path / "a.tar", members)
    found = scan(tmp_path, "webdataset", **options)
    return found.classes, {name: row["label"] for name, row in rows(found).items()}


def test_a_label_may_be_a_number_in_cls_or_json_and_cls_counts(tmp_path):
    members = {"1.cls": b"2\n", "1.json": b'{"label": 0}', "1.jpg": b"", "2.jpg": b"", "2.json": b'{"label": 1}'}
    assert labelled(tmp_path, {**members, "3.jpg": b""}) == (("0", "1", "2"), {"1.jpg": 2, "2.jpg": 1, "3.jpg": -1})


def test_a_label_may_be_a_class_name_under_another_key(tmp_path):
    members = {"1.jpg": b"", "1.json": b'{"wnid": "n2"}', "2.png": b"", "2.json": b'{"wnid": "n1"}'}
    assert labelled(tmp_path, members, json_label_key="wnid") == (("n1", "n2"), {"1.jpg": 1, "2.png": 0})


def test_class_names_are_looked_up_in_classes_txt(tmp_path):
    (tmp_path / "classes.txt").write_text("zebra\nant\n")
    members = {"1.jpg": b"", "1.json": b'{"label": "ant"}', "2.jpg": b"", "2.cls": b"0"}
    assert labelled(tmp_path, members) == (("zebra", "ant"), {"1.jpg": 1, "2.jpg": 0})
    with pytest.raises(PipelineError, match="label 'bee' is none of the 2 classes"):
        labelled(tmp_path, {"1.jpg": b"", "1.json": b'{"label": "bee"}'})


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"1.jpg": b"", "1.cls": b"cat"}, "'1.cls' holds b'cat'; expected a whole number"),
        ({"1.jpg": b"", "1.json": b"[1]"}, "expected a JSON object"),
        ({"1.jpg": b"", "1.json": b'{"label": [1]}'}, "choose another images.json_label_key"),
        ({"1.jpg": b"", "1.cls": b"1", "2.jpg": b"", "2.json": b'{"label": "cat"}'}, "one kind of label"),
    ],
)
def test_labels_that_cannot_be_understood_are_refused(tmp_path, members, words):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(PipelineError) as error:
        scan(tmp_path, "webdataset")
    assert words in str(error.value)


def test_annotations_beside_an_image_are_not_images(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.jpg": b"", "1.seg.png": b"", "._1.jpg": b"", "1.cls": b"0"})
    found = scan(tmp_path, "webdataset")
    assert list(rows(found)) == ["1.jpg"]
    assert "'1.seg.png'" in found.notes[0]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
def test_a_compressed_tar_is_refused_by_name_and_by_content(tmp_path, name):
    write_tar(tmp_path / "good.tar", {"1.jpg": b""})
    with tarfile.open(tmp_path / name, "w:gz") as tar:
        tar.add(tmp_path / "good.tar", "1.jpg")
    with pytest.raises(PipelineError, match=rf"{name}: compressed.*decompress it"):
        scan(tmp_path, "webdataset")


def test_a_tar_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, {f"{i}.jpg": bytes([i]) * 700 for i in range(1, 4)})
    whole = path.read_bytes()
    assert len(rows(scan(tmp_path, "webdataset"))) == 3
    for length in range(0, 3 * (512 + 1024) + 1, 256):  # up to the end mark: header or data cut, or only the mark gone
        path.write_bytes(whole[:length])
        with pytest.raises(PipelineError, match=r"a.tar: truncated"):
            scan(tmp_path, "webdataset")


def test_a_damaged_header_and_joined_tars_are_refused(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, {f"{i}.jpg": bytes([i]) * 700 for i in range(1, 4)})
    whole = path.read_bytes()
    path.write_bytes(whole[:1536] + b"\xff" * 20 + whole[1556:])
    with pytest.raises(PipelineError, match="damaged at byte 1,536"):
        scan(tmp_path, "webdataset")
    path.write_bytes(whole + whole)
    with pytest.raises(PipelineError, match="a second tar begins"):
        scan(tmp_path, "webdataset")


def test_a_linked_member_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("1.jpg")
        info.type, info.linkname = tarfile.LNKTYPE, "0.jpg"
        tar.addfile(info)
    with pytest.raises(PipelineError, match=r"'1.jpg' is a link"):
        scan(tmp_path, "webdataset")


def test_a_shard_that_became_shorter_after_the_scan_cannot_be_read(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.jpg": b"x" * 5000})
    source = open_source(ImageSourceOptions(kind="webdataset", path=str(tmp_path)))
    row = source.scan().table.to_pylist()[0]
    os.truncate(tmp_path / "a.tar", 1000)
    with pytest.raises(OSError, match=r"ends inside 1.jpg: 488 of 5000 bytes"):
        source.reader().read(ImageEntry(0, **{key: row[key] for key in row if key not in ("split", "label")}))


def test_a_reader_keeps_only_a_few_shards_open(tmp_path):
    for number in range(9):
        write_tar(tmp_path / f"{number}.tar", {f"{number}.jpg": b"x"})
    source = open_source(ImageSourceOptions(kind="webdataset", path=str(tmp_path)))
    found = source.scan()
    index = ImageIndex.build(found.table, classes=(), source_kind="webdataset", images_per_shard=100)
    before = len(os.listdir("/proc/self/fd"))
    reader = source.reader()
    assert [reader.read(entry) for entry in index.entries(np.arange(9))] == [b"x"] * 9
    assert len(os.listdir("/proc/self/fd")) - before <= 4
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


# --- what the user may get wrong


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": ""}, "images.path is empty"),
        ({"path": "/no/such/place"}, "does not exist"),
        ({"path": __file__}, "is a file"),
        ({"kind": "demo"}, "written to a folder first"),
        ({"kind": "parquet", "path": "/tmp", "labels_csv": "x.csv"}, "carries its own labels"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_anything_is_read(options, words):
    with pytest.raises(PipelineError) as error:
        open_source(ImageSourceOptions(**options))
    assert words in str(error.value)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_directory_without_images_is_refused(tmp_path, kind):
    with pytest.raises(PipelineError, match=r"found; check images\.path"):
        scan(write_files(tmp_path, "readme.txt"), kind)


def test_the_home_directory_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(write_files(tmp_path, "photos/1.jpg")))
    assert list(rows(scan(Path("~/photos")))) == ["1.jpg"]


def test_where_the_images_lie_does_not_define_a_result():
    fields = ImageSourceOptions.model_fields
    unhashed = {
        name for name, field in fields.items() if (field.json_schema_extra or {}).get("defines_result") is False
    }
    assert unhashed == {"path", "labels_csv", "identity"}  # which counts by the digest that it chooses
    assert all(field.description for field in fields.values())
