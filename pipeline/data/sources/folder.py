"""Images as files: `<split>/<class>/**/image.jpg` (ImageFolder, ILSVRC), `<class>/**/image.jpg`, or a flat directory.

The class is the first directory below the split. ILSVRC's `val/` is flat in the original and in Kaggle's tree, which
keeps its labels in LOC_val_solution.csv.
"""

import csv
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from pipeline.data.formats import ENDINGS
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.base import Scan
from pipeline.data.sources.layout import Layout, read_layout
from pipeline.data.sources.rows import ScanRows
from pipeline.data.sources.walk import FoundFile, Passed, walk_files
from pipeline.engine.errors import PipelineError
from storage.image_index import ImageEntry

LABELS_FILE = "LOC_val_solution.csv"
# Pointing at the top of Kaggle's tree must name images as pointing at CLS-LOC does.
_KAGGLE_BELOW = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_HINT = "; if they have, give their classes as directories or as images.labels_csv=.../LOC_val_solution.csv"


class FolderReader:
    """Opens, reads and closes one file per image."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, entry: ImageEntry) -> bytes:
        with open(os.path.join(self._root, entry.container), "rb") as file:
            return file.read()

    def close(self) -> None:
        """Close nothing: nothing stays open."""


@dataclass(frozen=True)
class FolderSource:
    """Image files below `root`."""

    root: Path
    options: ImageSourceOptions

    def reader(self) -> FolderReader:
        return FolderReader(self.root)

    def scan(self) -> Scan:
        """Raises PipelineError: no images, an unreadable directory, a file name that is not UTF-8, a bad labels_csv."""
        below = next((path for path in _KAGGLE_BELOW if (self.root / path).is_dir()), "")
        rows, passed = ScanRows(self.root, self.options), Passed()
        files = list(walk_files(self.root / below, ENDINGS, passed))
        paths = (normalize("NFC", file.path) for file in files)
        layout = read_layout(paths, self.root / below, self.options.top_folders)
        images = [_Image.at(file, layout) for file in files]
        labels_file = self._labels_file(self.root / below / layout.around)
        labels, notes = _labels(images, _read_labels(labels_file) if labels_file else {})
        rows.notes += notes + _directories_without_images(images, passed.directories, layout)
        rows.left_out.update(passed.endings)
        if labels_file and labels_file.resolve().is_relative_to((self.root / below).resolve()):
            rows.left_out.subtract({labels_file.suffix.lower(): 1})
        for image, label in zip(images, labels, strict=True):
            path, size = image.file
            rows.add(path, told_split="", label=label, container=os.path.join(below, path), size=size)
        return rows.build(layout=layout, unlabelled_hint=_HINT)

    def _labels_file(self, root: Path) -> Path | None:
        if self.options.labels_csv:
            return Path(self.options.labels_csv).expanduser()
        near = (self.root / LABELS_FILE, root / LABELS_FILE, root / "../../.." / LABELS_FILE)
        return next((path for path in near if path.is_file()), None)


class _Image(NamedTuple):
    file: FoundFile
    split: str
    directory: str  # the first one below the split, "" when there is none

    @classmethod
    def at(cls, file: FoundFile, layout: Layout) -> "_Image":
        place = layout.place(normalize("NFC", file.path))
        return cls(file, place.split, _directory_of(place.inner))

    @property
    def stem(self) -> str:
        return os.path.splitext(os.path.basename(self.file.path))[0]


def _directory_of(inner: str) -> str:
    first, _, below = inner.partition("/")
    return first if below else ""


def _directories_without_images(images: list[_Image], directories: list[str], layout: Layout) -> list[str]:
    """Return a note on directories beside those of classes: an empty one is no class, and shifts the numbers after
    it."""
    classes = {image.directory for image in images} - {""}
    splits = {image.split for image in images if image.directory}
    places = (layout.place(f"{normalize('NFC', directory)}/") for directory in directories)
    beside = {place.inner[:-1] for place in places if place.split in splits and place.inner.count("/") == 1}
    empty = sorted(beside - classes - {""})
    if not classes or not empty:
        return []
    named = ", ".join(f"{directory}/" for directory in empty[:3]) + (", ..." if len(empty) > 3 else "")
    return [f"without images, and so no classes and not counted among them: {named}"]


def _labels(images: list[_Image], listed: dict[str, str]) -> tuple[list[str | None], list[str]]:
    """Return each image's class: its directory, where directories are classes, else what the labels file lists; and
    notes."""
    flat, notes = _splits_without_classes(images)
    directories = {image.directory for image in images if image.split not in flat} - {""}
    labels = [
        image.directory if image.directory and image.split not in flat else listed.get(image.stem) for image in images
    ]
    foreign = {label for label in labels if label} - directories
    if foreign and directories:
        notes.append(f"{len(foreign)} classes of the labels file (such as {min(foreign)!r}) have no directory")
    return labels, notes


def _splits_without_classes(images: list[_Image]) -> tuple[set[str], list[str]]:
    """Find the splits whose directories are no classes, as they share none with train (Tiny ImageNet's `val/images/`);
    and notes."""
    seen: dict[str, set[str]] = defaultdict(set)
    for image in images:
        if image.directory:
            seen[image.split].add(image.directory)
    train = seen.get("train", set())
    foreign = {split: found for split, found in seen.items() if train and not found & train}
    notes = [
        f"{split}/ has directories (such as {min(found)!r}) but none of train's classes; they are not taken as labels"
        for split, found in sorted(foreign.items())
    ]
    notes += [
        f"{split}/ has {len(found - train)} classes (such as {min(found - train)!r}) that train/ lacks"
        for split, found in sorted(seen.items())
        if train and split not in foreign and found - train
    ]
    return set(foreign), notes


def _read_labels(path: Path) -> dict[str, str]:
    """Return the class of each image, by the stem of its file's name, from Kaggle's `ImageId,PredictionString`: the
    class is the string's first word."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PipelineError(f"images.labels_csv={path} cannot be read: {error}") from error
    labels = {line.get("ImageId"): (line.get("PredictionString") or "").split(" ")[0] for line in lines}
    wrong = [image for image, label in labels.items() if not image or not label]
    if wrong or not labels:
        raise PipelineError(
            f"images.labels_csv={path}: expected the columns ImageId,PredictionString, filled in every line, found "
            f"{','.join(map(str, lines[0])) if lines else 'no lines'}; download LOC_val_solution.csv again"
        )
    return {str(image): label for image, label in labels.items()}
