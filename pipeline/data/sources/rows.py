"""Collect a scan row by row: names, splits and labels get their final form here, the same for every layout."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.sources.base import ImageSourceOptions, Scan
from pipeline.data.sources.names import canonical_name
from pipeline.data.sources.walk import require_utf8
from pipeline.errors import PipelineError
from storage.files import canonical_json, sha256_text
from storage.image_index import SCAN_SCHEMA

Label = int | str | None
_MOST_CLASSES = 100_000  # of labels that are numbers: an id of something else would make a name for every number


class ScanRows:
    """The images found so far below `root`. `build` makes a Scan of them."""

    def __init__(self, root: Path, options: ImageSourceOptions) -> None:
        self.root = root
        self.notes: list[str] = []
        self._otherwise = options.split
        self._columns: dict[str, list] = {field.name: [] for field in SCAN_SCHEMA}
        self._first_without_split = ""  # after all names, `images.split` included
        self._all_told = True
        self._labels: list[Label] = self._columns["label"]
        self._contents: dict[str, str] = {}

    def identify(self, container: str, digest: str) -> None:
        """What stands for the contents of a file that holds several images."""
        self._contents[container] = digest

    def add(
        self,
        path: str,
        *,
        told_split: str,
        label: Label,
        container: str,
        key: str = "",
        offset: int = 0,
        row_group: int = -1,
        row_in_group: int = -1,
        size: int = -1,
    ) -> None:
        """One image. `label` is a class name, its number, or None (so is a negative number)."""
        if not path.isascii():
            require_utf8(path, self.root)
        name, split = canonical_name(path, told=told_split)
        if not split:
            self._all_told = False
            if self._otherwise:
                name, split = f"{self._otherwise}/{name}", self._otherwise
            else:
                self._first_without_split = self._first_without_split or name
        known = None if isinstance(label, int) and label < 0 else label
        row = (name, split, known, container, key, offset, row_group, row_in_group, size)
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(value)

    def build(self, *, classes: Sequence[str] = (), unlabelled_hint: str = "") -> Scan:
        """The scan. Without `classes` they are the sorted class names seen, or the numbers up to the largest.

        Raises:
            PipelineError: no images; some with a split and some without; labels that do not fit `classes`.
        """
        splits = self._columns["split"]
        if not splits:
            raise PipelineError(f"{self.root}: no images found; check images.path and images.kind")
        if self._otherwise and self._all_told:
            self.notes.append(
                f"images.split={self._otherwise} is not used: all images are in directories or files "
                "that tell their split"
            )
        if self._first_without_split:
            self._use_train_where_no_split_is_told(splits)
        names = tuple(classes) or self._classes_seen()
        arrays = {**self._columns, "label": self._class_numbers(names), "split": self._columns["split"]}
        table = pa.table(arrays, schema=SCAN_SCHEMA)
        contents = sha256_text(canonical_json(self._contents)) if self._contents else ""
        return Scan(table, names, (*self.notes, *self._notes_on_labels(unlabelled_hint)), contents)

    def _use_train_where_no_split_is_told(self, splits: list[str]) -> None:
        if any(splits):
            counts = Counter(splits)
            raise PipelineError(
                f"{self.root}: {counts['']:,} images (such as {self._first_without_split!r}) tell no split, the others "
                f"are {', '.join(sorted(set(splits) - {''}))}; move them away, or count them with images.split=train"
            )
        self._columns["split"] = ["train"] * len(splits)

    def _classes_seen(self) -> tuple[str, ...]:
        seen = set(self._labels) - {None}
        words = {label for label in seen if isinstance(label, str)}
        numbers = {label for label in seen if isinstance(label, int)}
        if words and numbers:
            raise PipelineError(
                f"{self.root}: some labels are names ({min(words)!r}, ...), others numbers ({min(numbers)}, ...); "
                "give all images one kind of label"
            )
        if (largest := max(numbers, default=-1)) >= _MOST_CLASSES:
            raise PipelineError(
                f"{self.root}: the label {largest} would make {largest + 1:,} classes, at most {_MOST_CLASSES:,} can "
                "be; number the classes from 0, or give names as labels"
            )
        return tuple(sorted(words)) if words else tuple(str(i) for i in range(largest + 1))

    def _class_numbers(self, classes: tuple[str, ...]) -> np.ndarray:
        """int32 [images]."""
        if unusable := [name for name in classes if not name or "\n" in name]:
            raise PipelineError(f"{self.root}: the class name {unusable[0]!r} is empty or has a line break; rename it")
        numbers: dict[Label, int] = {name: number for number, name in enumerate(classes)}
        numbers |= {number: number for number in range(len(classes))}
        numbers[None] = -1
        if unknown := set(self._labels) - numbers.keys():
            raise PipelineError(
                f"{self.root}: label {min(unknown, key=str)!r} is none of the {len(classes)} classes "
                f"({', '.join(classes[:3])}, ...); correct the label or the list of classes"
            )
        return np.fromiter((numbers[label] for label in self._labels), np.int32, len(self._labels))

    def _notes_on_labels(self, hint: str) -> list[str]:
        all_images = Counter(self._columns["split"])
        without = Counter(
            split for split, label in zip(self._columns["split"], self._labels, strict=True) if label is None
        )
        return [
            f"{split}: {without[split]:,} of {all_images[split]:,} images have no label{hint}"
            for split in sorted(without)
            if split != "test"  # a public test set has none
        ]
