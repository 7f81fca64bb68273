"""Tars and Parquet files as tools and people write them: names that repeat, dots, other columns, labels from 1."""

import subprocess
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.engine.errors import PipelineError
from storage.image_index import ImageIndex
from tests.pipeline.cases import (
    bytes_by_name,
    encoded,
    hub_images,
    labels_by_name,
    scan,
    write_parquet,
    write_pictures,
    write_tar,
)

# --- names


def test_names_that_start_again_in_every_class_of_a_hub_file_get_container_and_row(tmp_path: Path) -> None:
    columns = {"image": hub_images("0.jpg", "1.jpg", "0.jpg", "other.png"), "label": [0, 0, 1, 1]}
    write_parquet(tmp_path / "data/train-00000-of-00001.parquet", columns)
    found = scan(tmp_path, "parquet")
    stem = "train/data/train-00000-of-00001"
    assert labels_by_name(found) == {
        f"{stem}/00000000.jpg": "0",
        "train/1.jpg": "0",
        f"{stem}/00000002.jpg": "1",
        "train/other.png": "1",
    }
    assert [note for note in found.notes if "2 images share their names" in note]
    read = bytes_by_name(tmp_path, "parquet")
    assert read[f"{stem}/00000002.jpg"] == encoded(2)


def test_keys_that_start_again_in_every_tar_get_container_and_row_alike_everywhere(tmp_path: Path) -> None:
    tables = []
    for place, order in (("one", (0, 1)), ("two", (1, 0))):
        for shard in order:  # written in another order: listed in another by some file systems
            members = [
                (f"{i:06d}.{ending}", data)
                for i in range(2)
                for ending, data in (("jpg", encoded(2 * shard + i)), ("cls", b"%d" % i))
            ]
            write_tar(tmp_path / place / f"train-{shard:04d}.tar", members)
        found = scan(tmp_path / place, "webdataset")
        index = ImageIndex.build(found.table, classes=(), source_kind="webdataset", images_per_shard=9)
        tables.append(index.table)
    assert tables[0].equals(tables[1])
    assert tables[0]["name"].to_pylist() == [f"train/train-{s:04d}/{i:08d}.jpg" for s in range(2) for i in range(2)]
    read = bytes_by_name(tmp_path / "two", "webdataset")
    assert [read[name] for name in sorted(read)] == [encoded(seed) for seed in range(4)]


def test_nameless_rows_of_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_parquet(tmp_path / folder / "part-0.parquet", {"image": hub_images(None)})
    assert set(labels_by_name(scan(tmp_path, "parquet"))) == {"a/part-0/00000000", "b/part-0/00000000"}


# --- members of tars


def test_an_image_with_dots_in_its_name_is_found_with_its_label_and_said(tmp_path: Path) -> None:
    members = [("22.05.jpg", encoded(1)), ("22.05.cls", b"0"), ("22.06.jpg", encoded(2)), ("22.06.cls", b"1")]
    write_tar(tmp_path / "a.tar", members)
    found = scan(tmp_path, "webdataset")
    assert labels_by_name(found) == {"22.05.jpg": "0", "22.06.jpg": "1"}
    assert "2 images such as '22.05.jpg' have dots in their names" in found.notes[0]


def test_the_label_of_a_sample_is_that_of_its_only_part(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.rgb.png", b"x"), ("1.cls", b"1"), ("2.rgb.png", b"x"), ("2.cls", b"0")])
    assert labels_by_name(scan(tmp_path, "webdataset")) == {"1.rgb.png": "1", "2.rgb.png": "0"}


def test_an_annotation_without_its_image_is_none_either(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.jpg", b"x"), ("1.seg.png", b"x"), ("2.seg.png", b"x")])
    assert list(labels_by_name(scan(tmp_path, "webdataset"))) == ["1.jpg"]


def test_two_parts_that_may_be_the_image_are_asked_about(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.input.png", b"x"), ("1.mask.png", b"x"), ("1.cls", b"0")])
    with pytest.raises(PipelineError, match=r"images\.member_ending=input\.png.* or .*images\.member_ending=\*"):
        scan(tmp_path, "webdataset")
    assert labels_by_name(scan(tmp_path, "webdataset", member_ending="input.png")) == {"1.input.png": "0"}
    assert len(scan(tmp_path, "webdataset", member_ending="*").table) == 2


def test_what_a_tar_holds_beside_images_and_labels_is_counted(tmp_path: Path) -> None:
    members = [("1.jpg", b"x"), ("1.txt", b"x"), ("1.cls", b"0"), ("1.json", b"{}"), ("2.heic", b"x")]
    write_tar(tmp_path / "a.tar", members)
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / "classes.txt").write_text("cat\n")
    words = scan(tmp_path, "webdataset").in_words()
    assert all(part in words for part in ("1 .heic (", "1 .md", "1 .txt"))
    assert ".json" not in words


def test_a_tar_of_tars_is_refused_with_a_command_that_unpacks_it(tmp_path: Path) -> None:
    inner = {name: write_tar(tmp_path / f"{name}.tar", [(f"{name}_1.JPEG", encoded())]) for name in ("n01", "n02")}
    outer = write_tar(tmp_path / "in here/img_train.tar", [(p.name, p.read_bytes()) for p in inner.values()])
    with pytest.raises(PipelineError, match=r"holds tars \('n01\.tar', \.\.\.\)") as error:
        scan(outer.parent, "webdataset")
    command = str(error.value).split("`")[1]
    subprocess.run(["bash", "-ec", command], check=True, cwd="/")
    found = scan(outer.with_suffix(""), top_folders="classes")
    assert labels_by_name(found) == {"n01/n01_1.JPEG": "n01", "n02/n02_1.JPEG": "n02"}


# --- columns of Parquet files


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_bytes_of_any_arrow_type_are_read(kind: pa.DataType, tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": pa.array([encoded(0), encoded(1)], kind)})
    assert list(bytes_by_name(tmp_path, "parquet").values()) == [encoded(0), encoded(1)]


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["dog", "cat"]).dictionary_encode(),
        pa.array(["dog", "cat"], pa.large_string()),
        pa.array(["dog", "cat"], pa.string_view()),
    ],
)
@pytest.mark.parametrize("column", ["label", "labels", "fine_label", "class_name"])
def test_labels_of_any_arrow_type_in_a_column_of_a_usual_name_are_read(
    column: str, labels: pa.Array, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "a.parquet", {"img": hub_images("1.jpg", "2.jpg"), column: labels, "width": [1, 2]})
    found = scan(tmp_path, "parquet")
    assert labels_by_name(found) == {"1.jpg": "dog", "2.jpg": "cat"}
    assert "the images are the column 'img'" in found.notes[0]
    assert bytes_by_name(tmp_path, "parquet")["2.jpg"] == encoded(1)


def test_columns_that_leave_a_choice_are_listed_and_can_be_chosen(tmp_path: Path) -> None:
    images, labels = hub_images("1.jpg", "2.jpg"), [1, 0]
    columns = {"left": images, "right": images, "fine_label": labels, "coarse_label": [0, 0]}
    write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(PipelineError, match=r"columns left: struct.*such as images\.image_column=left"):
        scan(tmp_path, "parquet")
    with pytest.raises(PipelineError, match=r"fine_label: int64, coarse.*such as images\.label_column=fine_label"):
        scan(tmp_path, "parquet", image_column="right")
    chosen = {"image_column": "right", "label_column": "fine_label"}
    assert labels_by_name(scan(tmp_path, "parquet", **chosen)) == {"1.jpg": "1", "2.jpg": "0"}
    assert bytes_by_name(tmp_path, "parquet", **chosen)["1.jpg"] == encoded(0)
    with pytest.raises(PipelineError, match=r"images\.label_column=breed; found columns"):
        scan(tmp_path, "parquet", image_column="left", label_column="breed")


def test_without_labels_the_columns_there_are_are_said(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": hub_images("1.jpg"), "caption": ["a dog"]})
    [note] = scan(tmp_path, "parquet").notes
    assert "1 of 1 images have no label (columns: image, caption; images.label_column" in note


def test_class_names_belong_to_the_column_that_is_taken(tmp_path: Path) -> None:
    features = '{"info": {"features": {"breed": {"names": ["pug", "husky"], "_type": "ClassLabel"}}}}'
    columns = {"image": hub_images("1.jpg"), "breed": [1], "age": [3]}
    write_parquet(tmp_path / "a.parquet", columns, {"huggingface": features})
    found = scan(tmp_path, "parquet")
    assert (found.classes, labels_by_name(found)) == (("pug", "husky"), {"1.jpg": "husky"})


# --- labels that are numbers


def test_labels_from_1_are_said_and_can_be_counted_from_1(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"image": hub_images("1.jpg", "2.jpg"), "label": [1, 2]})
    found = scan(tmp_path, "parquet")
    assert found.classes == ("0", "1", "2")
    assert "class 0 ('0') of 3 has no images; if 1 is the first class, set images.first_label=1" in found.notes[0]
    counted = scan(tmp_path, "parquet", first_label=1)
    assert (counted.classes, counted.notes) == (("1", "2"), ())
    assert labels_by_name(counted) == {"1.jpg": "1", "2.jpg": "2"}


def test_labels_from_1_with_names_from_0_are_refused_until_said(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.jpg", b"x"), ("1.cls", b"1"), ("2.jpg", b"x"), ("2.cls", b"2")])
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(PipelineError, match=r"label 2 is none of the 2 classes .*images\.first_label=1"):
        scan(tmp_path, "webdataset")
    assert labels_by_name(scan(tmp_path, "webdataset", first_label=1)) == {"1.jpg": "cat", "2.jpg": "dog"}


def test_class_directories_that_are_numbers_are_sorted_as_words_and_said(tmp_path: Path) -> None:
    found = scan(write_pictures(tmp_path, *(f"{number}/1.jpg" for number in (0, 1, 2, 10))))
    assert found.classes == ("0", "1", "10", "2")
    assert found.notes == ("the classes are called by numbers and sorted as words: 0, 1, 10, 2, ...",)
    assert scan(write_pictures(tmp_path / "padded", "00/1.jpg", "02/1.jpg", "10/1.jpg")).notes == ()
