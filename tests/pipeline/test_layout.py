"""What the uppermost directories are: splits by any name, a wrapper, classes; what is unclear is asked."""

from pathlib import Path

import pytest

from pipeline.engine.errors import PipelineError
from tests.pipeline.cases import labels_by_name, scan, write_pictures, write_tar


def names(root: Path, **options: str) -> set[str]:
    return set(scan(root, **options).table["name"].to_pylist())


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train2017", "val2017"),
        ("train_256", "val_256"),
        ("imagenet_train", "imagenet_val"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
        ("TrainImages", "ValidImages"),
        ("DIV2K_train_HR", "DIV2K_valid_HR"),
        ("train-set", "val"),
        ("TRAIN2014", "validation2017"),
    ],
)
def test_splits_that_carry_other_words_are_splits_and_said(train: str, val: str, tmp_path: Path) -> None:
    found = scan(write_pictures(tmp_path, f"{train}/a/1.jpg", f"{train}/b/2.jpg", f"{val}/a/3.jpg"))
    assert labels_by_name(found) == {"train/a/1.jpg": "a", "train/b/2.jpg": "b", "val/a/3.jpg": "a"}
    assert f"{train}/ as train" in found.notes[0]
    assert "splits: train 2, val 1; classes: 2 (a, b); without a label: 0" in found.in_words()


def test_a_single_split_with_a_year_is_one(tmp_path: Path) -> None:
    assert names(write_pictures(tmp_path, "train2017/1.jpg", "train2017/2.jpg")) == {"train/1.jpg", "train/2.jpg"}


def test_classes_that_have_a_splits_name_in_theirs_stay_classes(tmp_path: Path) -> None:
    found = scan(write_pictures(tmp_path, "bullet_train/1.jpg", "test_tube/1.jpg", "trains/1.jpg", "valley/1.jpg"))
    assert found.classes == ("bullet_train", "test_tube", "trains", "valley")
    assert found.notes == ()


@pytest.mark.parametrize("wrapper", ["imagenet", "data/ILSVRC", "data/train_sets"])
def test_a_wrapper_around_the_splits_is_read_through_and_said(wrapper: str, tmp_path: Path) -> None:
    write_pictures(tmp_path, f"{wrapper}/train/a/1.jpg", f"{wrapper}/train2/b/1.jpg", f"{wrapper}/val/a/1.jpg")
    (tmp_path / wrapper / "train2/b").rename(tmp_path / wrapper / "train/b")
    found = scan(tmp_path)
    assert labels_by_name(found) == {"train/a/1.jpg": "a", "train/b/1.jpg": "b", "val/a/1.jpg": "a"}
    assert f"everything lies in {wrapper}/" in found.notes[0]


def test_an_index_is_the_same_from_one_level_too_high(tmp_path: Path) -> None:
    write_pictures(tmp_path, "set/train/a/1.jpg", "set/val/a/2.jpg")
    above, below = scan(tmp_path).table, scan(tmp_path / "set").table
    columns = ["name", "split", "label", "bytes"]
    assert above.select(columns).sort_by("name").equals(below.select(columns).sort_by("name"))


def test_a_split_that_holds_its_name_once_more_is_unpacked_twice(tmp_path: Path) -> None:
    found = scan(write_pictures(tmp_path, "seg_train/seg_train/a/1.jpg", "seg_test/seg_test/a/2.jpg"))
    assert labels_by_name(found) == {"train/a/1.jpg": "a", "test/a/2.jpg": "a"}


def test_a_class_called_train_inside_splits_is_a_class(tmp_path: Path) -> None:
    found = scan(write_pictures(tmp_path, "train/bus/1.jpg", "train/train/2.jpg", "val/train/3.jpg"))
    assert labels_by_name(found) == {"train/bus/1.jpg": "bus", "train/train/2.jpg": "train", "val/train/3.jpg": "train"}


def test_a_class_called_train_beside_classes_is_asked_about_and_can_be_told(tmp_path: Path) -> None:
    write_pictures(tmp_path, "bus/1.jpg", "car/1.jpg", "train/1.jpg")
    with pytest.raises(PipelineError, match=r"images\.split=train, or, .*images\.top_folders=classes"):
        scan(tmp_path)
    found = scan(tmp_path, top_folders="classes")
    assert found.classes == ("bus", "car", "train")
    assert set(found.table["split"].to_pylist()) == {"train"}
    assert labels_by_name(scan(tmp_path, top_folders="classes", split="val"))["val/train/1.jpg"] == "train"


def test_two_directories_of_one_split_are_asked_about_and_can_be_joined(tmp_path: Path) -> None:
    write_pictures(tmp_path, "train2014/a/1.jpg", "train2017/a/1.jpg", "val/a/1.jpg")
    with pytest.raises(PipelineError, match=r"train2014/ and train2017/ .*top_folders=splits.*top_folders=classes"):
        scan(tmp_path)
    joined = {"train/train2014/a/1.jpg": "a", "train/train2017/a/1.jpg": "a", "val/a/1.jpg": "a"}
    assert labels_by_name(scan(tmp_path, top_folders="splits")) == joined
    assert scan(tmp_path, top_folders="classes").classes == ("train2014", "train2017", "val")


def test_names_that_may_be_splits_or_classes_are_asked_about(tmp_path: Path) -> None:
    write_pictures(tmp_path, "bullet_train/1.jpg", "test_tube/1.jpg")
    with pytest.raises(
        PipelineError, match=r"bullet_train/, test_tube/ may be splits .*=splits\) or classes .*=classes"
    ):
        scan(tmp_path)
    assert names(tmp_path, top_folders="splits") == {"train/1.jpg", "test/1.jpg"}
    assert names(tmp_path, top_folders="classes") == {"bullet_train/1.jpg", "test_tube/1.jpg"}


def test_splits_below_classes_are_asked_about(tmp_path: Path) -> None:
    write_pictures(tmp_path, "cat/train/1.jpg", "cat/val/2.jpg", "dog/train/1.jpg", "dog/val/2.jpg")
    with pytest.raises(PipelineError, match=r"cat/ holds splits of its own \(train, val\): .*/cat\), or a class"):
        scan(tmp_path)
    assert scan(tmp_path, top_folders="classes").classes == ("cat", "dog")


def test_splits_that_are_wanted_and_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="top_folders=splits, but no directory there tells a split"):
        scan(write_pictures(tmp_path, "cat/1.jpg"), top_folders="splits")


def test_paths_inside_a_tar_are_read_alike(tmp_path: Path) -> None:
    write_tar(tmp_path / "all.tar", [("coco/train2017/1.jpg", b"x"), ("coco/val2017/2.jpg", b"x")])
    found = scan(tmp_path, "webdataset")
    assert set(found.table["name"].to_pylist()) == {"train/1.jpg", "val/2.jpg"}
    assert "everything lies in coco/" in found.notes[0]


@pytest.mark.parametrize("container", ["imagenet_train/0000.tar", "train2017/0000.tar", "ilsvrc_train-0000.tar"])
def test_a_container_tells_its_split_by_any_word_of_its_name_or_directory(container: str, tmp_path: Path) -> None:
    write_tar(tmp_path / container, [("1.jpg", b"x")])
    assert scan(tmp_path, "webdataset").table["name"].to_pylist() == ["train/1.jpg"]


def test_a_class_directory_without_images_is_said_because_numbers_shift(tmp_path: Path) -> None:
    write_pictures(tmp_path, "train/a/1.jpg", "train/c/1.jpg", "val/a/1.jpg")
    for empty in ("train/b", "val/c", "extras"):  # a class of none; one of train; none at all
        (tmp_path / empty).mkdir()
    found = scan(tmp_path)
    assert found.classes == ("a", "c")
    assert found.notes == ("without images, and so no classes and not counted among them: b/",)
