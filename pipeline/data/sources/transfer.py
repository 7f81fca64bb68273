"""The data sets of cross-domain transfer (Table 5) as their authors publish them, read by torchvision's own classes.

Their training images (of FGVC-Aircraft `trainval`, variants as classes) are the split `train`, their test images `val`.
The copyright banner at the bottom of aircraft photographs, 20 pixels high, stays: the paper does not say that it was
cut off.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.formats import ENDINGS, ending_of
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.base import Scan
from pipeline.data.sources.folder import FolderReader
from pipeline.data.sources.rows import ScanRows
from pipeline.data.sources.walk import walk_files
from pipeline.engine.errors import PipelineError


@dataclass(frozen=True)
class _DataSet:
    title: str
    torchvision_class: str
    folder: str  # its name below what torchvision calls root
    train: tuple[str, str]  # torchvision's name of the split, and where its images are
    test: tuple[str, str]
    layout: str


_DATA_SETS = {
    "stanford_cars": _DataSet(
        title="Stanford Cars",
        torchvision_class="StanfordCars",
        folder="stanford_cars",
        train=("train", "cars_train"),
        test=("test", "cars_test"),
        layout="devkit/cars_train_annos.mat, devkit/cars_meta.mat, cars_test_annos_withlabels.mat, cars_train/*.jpg "
        "and cars_test/*.jpg",
    ),
    "food101": _DataSet(
        title="Food-101",
        torchvision_class="Food101",
        folder="food-101",
        train=("train", "images"),
        test=("test", "images"),
        layout="meta/train.json, meta/test.json and images/<class>/*.jpg",
    ),
    "fgvc_aircraft": _DataSet(
        title="FGVC-Aircraft",
        torchvision_class="FGVCAircraft",
        folder="fgvc-aircraft-2013b",
        train=("trainval", "data/images"),
        test=("test", "data/images"),
        layout="data/variants.txt, data/images_variant_trainval.txt, data/images_variant_test.txt and "
        "data/images/*.jpg",
    ),
}
TRANSFER_KINDS = tuple(_DATA_SETS)


@dataclass(frozen=True)
class TransferSource:
    """One of TRANSFER_KINDS in its standard layout; `root` is its own folder or the one that holds it.

    A canonical name is split and path below the folder of images, such as `val/apple_pie/1011328.jpg`.
    """

    root: Path
    options: ImageSourceOptions

    def reader(self) -> FolderReader:
        return FolderReader(self._folder)

    def scan(self) -> Scan:
        """Raises PipelineError: the layout is another one or incomplete, or images that its lists name are missing."""
        data_set, folder = self._data_set, self._folder
        rows = ScanRows(folder, self.options)
        classes: tuple[str, ...] = ()
        missing: list[str] = []
        for split, (theirs, images) in (("train", data_set.train), ("val", data_set.test)):
            listed, found = self._listed(theirs)
            classes = classes or found  # the test list must get along with those of training
            for path, label in listed:
                container = path.relative_to(folder).as_posix()
                size = _size(path)
                if size is None:
                    missing.append(container)
                    continue
                name = path.relative_to(folder / images).as_posix()
                rows.add(name, told_split=split, label=label, container=container, size=size)
        if missing:
            raise PipelineError(
                f"{folder}: {len(missing):,} images that the lists of {data_set.title} name cannot be found (such as "
                f"{missing[0]}); unpack the data set again"
            )
        listed_files = set(rows.containers)
        unlisted = (file.path for file in walk_files(folder, ENDINGS) if file.path not in listed_files)
        rows.left_out.update(ending_of(path) for path in unlisted)
        return rows.build(classes=classes)

    @property
    def _data_set(self) -> _DataSet:
        return _DATA_SETS[self.options.kind]

    @property
    def _folder(self) -> Path:
        below = self.root / self._data_set.folder
        return below if below.is_dir() else self.root

    def _listed(self, split: str) -> tuple[list[tuple[Path, str]], tuple[str, ...]]:
        """Return the path and class name of every image of torchvision's `split`, and the names of all classes."""
        data_set, folder = self._data_set, self._folder
        if folder.name != data_set.folder:  # torchvision would look for a neighbour of that name
            raise PipelineError(f"{folder}: {self._expected}")
        try:
            from torchvision import datasets  # torch: seconds to import, and the other sources need none

            # What the class would give as an image is its path: nothing is opened.
            listing = getattr(datasets, data_set.torchvision_class)(str(folder.parent), split=split, loader=Path)
            return list(_items(listing)), tuple(listing.classes)
        except Exception as error:  # readers of .mat, .json and .txt each have errors of their own
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise PipelineError(f"{folder}: {self._expected}, but reading {split!r} failed ({what})") from error

    @property
    def _expected(self) -> str:
        data_set = self._data_set
        return f"expected {data_set.title}, a folder {data_set.folder}/ with {data_set.layout}"


def _items(listing: Any) -> Iterator[tuple[Path, str]]:
    for number in range(len(listing)):
        path, label = listing[number]
        if not 0 <= label < len(listing.classes):
            raise ValueError(f"{path.name} has class {label} of {len(listing.classes)}")
        yield path, str(listing.classes[label])


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
