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

from pipeline.data.sources.base import ImageSourceOptions, Scan
from pipeline.data.sources.names import split_of
from pipeline.data.sources.rows import ScanRows
from pipeline.data.sources.walk import FoundFile, walk_files
from pipeline.errors import PipelineError
from storage.image_index import ImageEntry

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
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
        """Nothing stays open."""


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
        images = [_Image.at(file) for file in walk_files(self.root / below, EXTENSIONS)]
        labels, notes = _labels(images, self._listed_labels(self.root / below))
        rows = ScanRows(self.root, self.options)
        rows.notes.extend(notes)
        for image, label in zip(images, labels, strict=True):
            path, size = image.file
            rows.add(path, told_split="", label=label, container=os.path.join(below, path), size=size)
        return rows.build(unlabelled_hint=_HINT)

    def _listed_labels(self, root: Path) -> dict[str, str]:
        if self.options.labels_csv:
            return _read_labels(Path(self.options.labels_csv).expanduser())
        near = (self.root / LABELS_FILE, root / LABELS_FILE, root / "../../.." / LABELS_FILE)
        found = next((path for path in near if path.is_file()), None)
        return _read_labels(found) if found else {}


class _Image(NamedTuple):
    file: FoundFile
    split: str
    directory: str  # the first one below the split, "" when there is none

    @classmethod
    def at(cls, file: FoundFile) -> "_Image":
        parts = file.path.split("/")
        split = split_of(parts[0]) if len(parts) > 1 else ""
        inner = parts[1:] if split else parts
        return cls(file, split, normalize("NFC", inner[0]) if len(inner) > 1 else "")

    @property
    def stem(self) -> str:
        return os.path.splitext(os.path.basename(self.file.path))[0]


def _labels(images: list[_Image], listed: dict[str, str]) -> tuple[list[str | None], list[str]]:
    """Each image's class: its directory, where directories are classes, else what the labels file lists; and notes."""
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
    """Splits whose directories are no classes: they share none with train (Tiny ImageNet's `val/images/`)."""
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
    """Image stem to class, from Kaggle's `ImageId,PredictionString`, where the class is the string's first word."""
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
