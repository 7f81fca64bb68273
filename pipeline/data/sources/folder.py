"""Images as files: `<split>/<class>/**/image.jpg` (ImageFolder, ILSVRC), `<class>/**/image.jpg`, or a flat directory.

The class is the first directory below the split. ILSVRC's `val/` is flat in the original and in Kaggle's tree, which
keeps its labels in LOC_val_solution.csv.
"""

import csv
import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self
from unicodedata import normalize

import pyarrow as pa

from pipeline.data.formats import ENDINGS
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.base import Scan
from pipeline.data.sources.layout import Layout, read_layout
from pipeline.data.sources.packed_rows import PackedRows
from pipeline.data.sources.rows import ScanRows
from pipeline.data.sources.walk import Passed, walk_files
from pipeline.engine.errors import PipelineError
from storage.image_index import ImageEntry

LABELS_FILE = "LOC_val_solution.csv"
# Pointing at the top of Kaggle's tree must name images as pointing at CLS-LOC does.
_KAGGLE_BELOW = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_FILES = pa.schema([("path", pa.string()), ("bytes", pa.int64())])
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
        rows, passed, files = ScanRows(self.root, self.options), Passed(), PackedRows(_FILES)
        directories: set[str] = set()
        for path, size in walk_files(self.root / below, ENDINGS, passed):
            files.append(path, size)
            directories.add(os.path.dirname(path))
        normalized = {normalize("NFC", directory) for directory in directories}
        layout = read_layout(normalized, self.root / below, self.options.top_folders)
        folders = {directory: _Folder.at(directory, layout) for directory in directories}
        labels_file = self._labels_file(self.root / below / layout.around)
        labels = _Labels(set(folders.values()), _read_labels(labels_file) if labels_file else {})
        for some in files.drain():
            for path, size in zip(*some, strict=True):
                label = labels.of(path, folders[os.path.dirname(path)])
                rows.add(path, told_split="", label=label, container=os.path.join(below, path), size=size)
        rows.notes += labels.notes() + _directories_without_images(labels.folders, passed.directories, layout)
        rows.left_out.update(passed.endings)
        if labels_file and labels_file.resolve().is_relative_to((self.root / below).resolve()):
            rows.left_out.subtract({labels_file.suffix.lower(): 1})
        return rows.build(layout=layout, unlabelled_hint=_HINT)

    def _labels_file(self, root: Path) -> Path | None:
        if self.options.labels_csv:
            return Path(self.options.labels_csv).expanduser()
        near = (self.root / LABELS_FILE, root / LABELS_FILE, root / "../../.." / LABELS_FILE)
        return next((path for path in near if path.is_file()), None)


class _Folder(NamedTuple):
    """Where the images of a directory are."""

    split: str
    directory: str  # the first one below the split, "" when there is none

    @classmethod
    def at(cls, directory: str, layout: Layout) -> Self:
        place = layout.place(normalize("NFC", os.path.join(directory, "image")))
        first, _, below = place.inner.partition("/")
        return cls(place.split, first if below else "")


class _Labels:
    """The classes of images: their directories, where directories are classes, else what the labels file lists."""

    def __init__(self, folders: Collection[_Folder], listed: Mapping[str, str]) -> None:
        self.folders, self._listed = folders, listed
        self._flat, self._notes = _splits_without_classes(folders)
        self._directories = {folder.directory for folder in folders if folder.split not in self._flat} - {""}
        self._foreign: set[str] = set()

    def of(self, path: str, folder: _Folder) -> str | None:
        """Return the class of the image at `path`; None where nothing tells it."""
        if folder.directory and folder.split not in self._flat:
            return folder.directory
        label = self._listed.get(os.path.splitext(os.path.basename(path))[0]) if self._listed else None
        if label is not None and label not in self._directories:
            self._foreign.add(label)
        return label

    def notes(self) -> list[str]:
        """Return what is odd about the classes of the images so far."""
        if not self._foreign or not self._directories:
            return self._notes
        such = min(self._foreign)
        odd = f"{len(self._foreign)} classes of the labels file (such as {such!r}) have no directory"
        return [*self._notes, odd]


def _directories_without_images(folders: Collection[_Folder], directories: list[str], layout: Layout) -> list[str]:
    """Return a note on directories beside those of classes: an empty one is no class, and shifts the numbers after
    it."""
    classes = {folder.directory for folder in folders} - {""}
    splits = {folder.split for folder in folders if folder.directory}
    places = (layout.place(f"{normalize('NFC', directory)}/") for directory in directories)
    beside = {place.inner[:-1] for place in places if place.split in splits and place.inner.count("/") == 1}
    empty = sorted(beside - classes - {""})
    if not classes or not empty:
        return []
    named = ", ".join(f"{directory}/" for directory in empty[:3]) + (", ..." if len(empty) > 3 else "")
    return [f"without images, and so no classes and not counted among them: {named}"]


def _splits_without_classes(folders: Collection[_Folder]) -> tuple[set[str], list[str]]:
    """Find the splits whose directories are no classes, as they share none with train (Tiny ImageNet's `val/images/`);
    and notes."""
    seen: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        if folder.directory:
            seen[folder.split].add(folder.directory)
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
