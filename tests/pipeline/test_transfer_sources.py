"""Stanford Cars, Food-101 and FGVC-Aircraft: small copies of their published layouts, read as any other images."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.base import Scan
from pipeline.data.sources.kinds import open_source
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from storage.image_index import ImageIndex
from tests.pipeline.odd_images import jpeg
from tests.stages import index_images

CARS = ("Acura Integra 1990", "Ram C/V Cargo Van 2012", "Audi TT 2011")  # not in alphabetical order
FOODS = ("apple_pie", "waffles")
AIRCRAFT = ("707-320", "Boeing 717", "A300B4")


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def annotations(
    classes: list[int], *, fields: tuple[str, ...] = ("bbox_x1", "class", "fname")
) -> dict[str, np.ndarray]:
    """Write the annotations as the devkit has them: an array of structs, classes counted from 1."""
    rows = np.zeros(len(classes), dtype=[(field, object) for field in fields])
    for number, label in enumerate(classes):
        values = {"bbox_x1": np.uint16(7), "class": np.uint8(label), "fname": f"{number + 1:05d}.jpg"}
        rows[number] = tuple(values[field] for field in fields)
    return {"annotations": rows}


def stanford_cars(root: Path) -> Path:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(CARS, dtype=object)})
    savemat(folder / "devkit/cars_train_annos.mat", annotations([2, 1, 3]))
    savemat(folder / "cars_test_annos_withlabels.mat", annotations([3, 2]))
    for directory, images in (("cars_train", 3), ("cars_test", 2)):
        for number in range(images):
            write(folder / directory / f"{number + 1:05d}.jpg", jpeg(20 + number, 16))
    return folder


def food101(root: Path) -> Path:
    folder = root / "food-101"
    listed = {
        "train": {"apple_pie": ["apple_pie/1", "apple_pie/2"], "waffles": ["waffles/5"]},
        "test": {"apple_pie": ["apple_pie/3"], "waffles": ["waffles/4"]},
    }
    for split, classes in listed.items():
        write(folder / f"meta/{split}.json", json.dumps(classes).encode())
        for name in (name for names in classes.values() for name in names):
            write(folder / f"images/{name}.jpg", jpeg(20 + int(name[-1]), 16))
    return folder


def fgvc_aircraft(root: Path) -> Path:
    folder = root / "fgvc-aircraft-2013b"
    write(folder / "data/variants.txt", "\n".join(AIRCRAFT).encode())
    listed = {"trainval": ["0034309 A300B4", "0034958 707-320", "0037511 Boeing 717"], "test": ["0900914 Boeing 717"]}
    for split, lines in listed.items():
        write(folder / f"data/images_variant_{split}.txt", "\n".join(lines).encode())
        for line in lines:
            write(folder / f"data/images/{line.split()[0]}.jpg", jpeg(20 + int(line[3]), 16))
    return folder


MAKE = {"stanford_cars": stanford_cars, "food101": food101, "fgvc_aircraft": fgvc_aircraft}
# name -> (class, container)
EXPECTED = {
    "stanford_cars": {
        "train/00001.jpg": ("Ram C/V Cargo Van 2012", "cars_train/00001.jpg"),
        "train/00002.jpg": ("Acura Integra 1990", "cars_train/00002.jpg"),
        "train/00003.jpg": ("Audi TT 2011", "cars_train/00003.jpg"),
        "val/00001.jpg": ("Audi TT 2011", "cars_test/00001.jpg"),
        "val/00002.jpg": ("Ram C/V Cargo Van 2012", "cars_test/00002.jpg"),
    },
    "food101": {
        "train/apple_pie/1.jpg": ("apple_pie", "images/apple_pie/1.jpg"),
        "train/apple_pie/2.jpg": ("apple_pie", "images/apple_pie/2.jpg"),
        "train/waffles/5.jpg": ("waffles", "images/waffles/5.jpg"),
        "val/apple_pie/3.jpg": ("apple_pie", "images/apple_pie/3.jpg"),
        "val/waffles/4.jpg": ("waffles", "images/waffles/4.jpg"),
    },
    "fgvc_aircraft": {
        "train/0034309.jpg": ("A300B4", "data/images/0034309.jpg"),
        "train/0034958.jpg": ("707-320", "data/images/0034958.jpg"),
        "train/0037511.jpg": ("Boeing 717", "data/images/0037511.jpg"),
        "val/0900914.jpg": ("Boeing 717", "data/images/0900914.jpg"),
    },
}
CLASSES = {"stanford_cars": CARS, "food101": FOODS, "fgvc_aircraft": AIRCRAFT}
kinds = pytest.mark.parametrize("kind", MAKE)


def scan(root: Path, kind: str, **options: str) -> Scan:
    return open_source(ImageSourceOptions(kind=kind, path=str(root), **options)).scan()


@kinds
def test_names_splits_labels_and_places_are_those_of_the_published_lists(kind: str, tmp_path: Path) -> None:
    folder = MAKE[kind](tmp_path)
    found = scan(tmp_path, kind)
    assert found.classes == CLASSES[kind]  # the data set's own order
    assert found.notes == ()
    rows = {row["name"]: row for row in found.table.to_pylist()}
    assert {name: (found.classes[row["label"]], row["container"]) for name, row in rows.items()} == EXPECTED[kind]
    for name, row in rows.items():
        assert row["split"] == name.split("/")[0]
        assert row["bytes"] == (folder / row["container"]).stat().st_size


@kinds
def test_an_index_is_the_same_whichever_of_the_two_folders_is_given(kind: str, tmp_path: Path) -> None:
    folder = MAKE[kind](tmp_path / "data")
    made = []
    for number, path in enumerate((folder.parent, folder)):
        workspace = Workspace(Settings(data_root=tmp_path / f"root{number}"))
        made.append(index_images(ImageSourceOptions(kind=kind, path=str(path)), workspace=workspace).artifact)
    assert made[0].digest == made[1].digest
    assert (made[0].summary["images"], made[0].summary["classes"]) == (len(EXPECTED[kind]), len(CLASSES[kind]))
    index = ImageIndex.read(made[0].path)
    for path in (folder.parent, folder):
        reader = pickle.loads(pickle.dumps(open_source(ImageSourceOptions(kind=kind, path=str(path))))).reader()
        for entry in index.entries(np.arange(len(index))):
            assert reader.read(entry) == (folder / EXPECTED[kind][entry.name][1]).read_bytes()


@kinds
def test_images_that_no_list_names_are_left_out(kind: str, tmp_path: Path) -> None:
    folder = MAKE[kind](tmp_path)
    first = next(iter(EXPECTED[kind].values()))[1]
    shutil.copy(folder / first, folder / first.replace(".jpg", "0.jpg"))
    assert len(scan(tmp_path, kind).table) == len(EXPECTED[kind])


def test_a_split_that_is_given_is_not_needed_and_labels_from_elsewhere_are_refused(tmp_path: Path) -> None:
    food101(tmp_path)
    found = scan(tmp_path, "food101", split="val")
    assert set(found.table["name"].to_pylist()) == set(EXPECTED["food101"])
    assert "images.split=val is not used" in found.notes[0]
    with pytest.raises(PipelineError, match="which carries its own labels"):
        scan(tmp_path, "food101", labels_csv="labels.csv")


@pytest.mark.parametrize(
    ("kind", "gone"),
    [
        ("stanford_cars", "stanford_cars"),
        ("stanford_cars", "stanford_cars/devkit/cars_meta.mat"),
        ("stanford_cars", "stanford_cars/devkit/cars_train_annos.mat"),
        ("stanford_cars", "stanford_cars/cars_test_annos_withlabels.mat"),  # apart from the devkit, and often forgotten
        ("food101", "food-101/meta"),
        ("food101", "food-101/meta/test.json"),
        ("fgvc_aircraft", "fgvc-aircraft-2013b/data/variants.txt"),
        ("fgvc_aircraft", "fgvc-aircraft-2013b/data/images_variant_trainval.txt"),
    ],
)
def test_an_incomplete_layout_is_refused_with_the_one_that_is_expected(kind: str, gone: str, tmp_path: Path) -> None:
    MAKE[kind](tmp_path)
    path = tmp_path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(PipelineError, match=r"expected .*, a folder \S+/ with .* and ") as error:
        scan(tmp_path, kind)
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)


def test_another_folder_beside_the_data_set_is_not_taken_for_it(tmp_path: Path) -> None:
    food101(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(PipelineError, match=r"photos: expected Food-101, a folder food-101/ with meta/train\.json"):
        scan(tmp_path / "photos", "food101")


@pytest.mark.parametrize(
    ("kind", "file", "content"),
    [
        ("stanford_cars", "stanford_cars/devkit/cars_train_annos.mat", b"not a mat file"),
        ("food101", "food-101/meta/train.json", b'{"apple_pie": '),
        ("fgvc_aircraft", "fgvc-aircraft-2013b/data/images_variant_test.txt", b"0900914 Concorde\n"),
        ("fgvc_aircraft", "fgvc-aircraft-2013b/data/images_variant_test.txt", b"0900914\n"),
    ],
)
def test_lists_that_cannot_be_understood_are_refused_with_the_readers_words(
    kind: str, file: str, content: bytes, tmp_path: Path
) -> None:
    MAKE[kind](tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(PipelineError, match=r"but reading '\w+' failed \(\w+: "):
        scan(tmp_path, kind)


def test_annotations_of_cars_without_classes_are_refused(tmp_path: Path) -> None:
    """The devkit's own list of test images has none; people rename it."""
    folder = stanford_cars(tmp_path)
    savemat(folder / "cars_test_annos_withlabels.mat", annotations([3, 2], fields=("bbox_x1", "fname")))
    with pytest.raises(PipelineError, match=r"reading 'test' failed \(\w+: .*class"):
        scan(tmp_path, "stanford_cars")


@pytest.mark.parametrize("label", [0, 4])
def test_a_car_of_an_unknown_class_is_refused(label: int, tmp_path: Path) -> None:
    folder = stanford_cars(tmp_path)
    savemat(folder / "devkit/cars_train_annos.mat", annotations([1, label, 3]))
    with pytest.raises(PipelineError, match=r"00002\.jpg has class -?\d+ of 3"):
        scan(tmp_path, "stanford_cars")


def test_listed_images_that_are_missing_are_counted(tmp_path: Path) -> None:
    folder = food101(tmp_path)
    for name in ("waffles/4.jpg", "waffles/5.jpg"):
        (folder / "images" / name).unlink()
    with pytest.raises(PipelineError, match=r"2 images that the lists of Food-101 name .*images/waffles/5\.jpg"):
        scan(tmp_path, "food101")
