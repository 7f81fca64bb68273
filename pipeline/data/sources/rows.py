"""Collect a scan row by row: names, splits and labels get their final form here, the same for every layout."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.formats import ENDINGS, ending_of, endings_in_words
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.base import Scan
from pipeline.data.sources.layout import Layout, Place, read_layout
from pipeline.data.sources.names import canonical_name, clean_path, in_order_of_number
from pipeline.data.sources.packed_rows import PackedRows
from pipeline.data.sources.walk import require_utf8
from pipeline.engine.errors import PipelineError
from storage.files import canonical_json, sha256_text
from storage.image_index import SCAN_SCHEMA

Label = int | str | None
_MOST_CLASSES = 100_000  # of labels that are numbers: an id of something else would make a name for every number


class ScanRows:
    """The images found so far below `root`. `build` makes a Scan of them."""

    def __init__(self, root: Path, options: ImageSourceOptions) -> None:
        self.root, self.options = root, options
        self.notes: list[str] = []
        self.left_out: Counter[str] = Counter()  # files that are no images, by ending
        # Until `build` a name is a path, a split what the container tells, a label its place among those seen so far.
        self._rows = PackedRows(SCAN_SCHEMA)
        self._labels: dict[Label, int] = {}
        self._contents: dict[str, str] = {}

    def identify(self, container: str, digest: str) -> None:
        """Add what stands for the contents of a file that holds several images."""
        self._contents[container] = digest

    @property
    def containers(self) -> set[str]:
        return {container for (some,) in self._rows.lists("container") for container in some}

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
        """Add one image. `told_split` is what its container tells, "" for none.

        `label` is a class name, its number, or None (so is a negative number).
        """
        if not path.isascii():
            require_utf8(path, self.root)
        known = None if isinstance(label, int) and label < 0 else label
        seen = self._labels.setdefault(known, len(self._labels))
        self._rows.append(clean_path(path), told_split, seen, container, key, offset, row_group, row_in_group, size)

    def build(self, *, layout: Layout | None = None, classes: Sequence[str] = (), unlabelled_hint: str = "") -> Scan:
        """Return the scan. Without `classes` they are the sorted class names seen, or the numbers up to the largest.

        Args:
            layout: of the paths whose container tells no split; read from them when not given.

        Raises:
            PipelineError: no images; some with a split and some without; labels that do not fit `classes`.
        """
        if not len(self._rows):
            left_out = endings_in_words(self.left_out)
            there = f"; there are {left_out}" if left_out else ""
            raise PipelineError(f"{self.root}: no images found; check images.path and images.kind{there}")
        self._name_images(layout or self._layout())
        if self.options.kind in ("parquet", "webdataset"):
            self._tell_namesakes_apart()
        names = tuple(classes) or self._classes_seen()
        notes = (*self.notes, *self._notes_on_numbers(names), *self._notes_on_labels(unlabelled_hint))
        contents = sha256_text(canonical_json(self._contents)) if self._contents else ""
        table, place = self._rows.compacted(), SCAN_SCHEMA.get_field_index("label")
        labels = pa.array(self._class_numbers(names)).take(table["label"].chunk(0))
        return Scan(table.set_column(place, SCAN_SCHEMA.field(place), labels), names, notes, contents, +self.left_out)

    def _layout(self) -> Layout:
        paths = self._rows.lists("name", "split")
        untold = {os.path.dirname(path) for some in paths for path, split in zip(*some, strict=True) if not split}
        return read_layout(untold, self.root, self.options.top_folders) if untold else Layout()

    def _name_images(self, layout: Layout) -> None:
        """Put canonical names and splits in place of paths and what containers tell."""
        otherwise = self.options.split
        without, example = 0, ""
        found: set[str] = set()
        for number, some in enumerate(self._rows.lists("name", "split")):
            names, splits = [], []
            for path, told in zip(*some, strict=True):
                split, name, _ = Place(told, canonical_name(path, told), "") if told else layout.place(path)
                if split:
                    found.add(split)
                else:
                    without, example = without + 1, example or name
                    name = f"{otherwise}/{name}" if otherwise else name
                names.append(name)
                splits.append(split or otherwise or "train")
            self._rows.replace(number, name=names, split=splits)
        self.notes += layout.notes()
        if otherwise and not without:
            self.notes.append(
                f"images.split={otherwise} is not used: all images are in directories or files that tell their split"
            )
        if without and not otherwise and found:
            raise PipelineError(
                f"{self.root}: {without:,} images (such as {example!r}) tell no split, the others are "
                f"{', '.join(sorted(found))}; move them away, count them with images.split=train, or, if "
                "directories that are called like a split are classes, set images.top_folders=classes"
            )

    def _tell_namesakes_apart(self) -> None:
        """Rename images that share a name, by their container and row: in many shards and classes the numbers start
        again."""
        counts = pc.value_counts(self._rows.table()["name"])
        shared = counts.filter(pc.greater(counts.field("counts"), 1))
        if not len(shared):
            return
        twice = set(shared.field("values").to_pylist())
        rows_in: Counter[str] = Counter()
        shown = ""
        for number, some in enumerate(self._rows.lists("name", "container", "split")):
            names = []
            for name, container, split in zip(*some, strict=True):
                if name in twice:
                    ending = ending_of(name) if ending_of(name) in ENDINGS else ""
                    path = f"{PurePosixPath(container).with_suffix('')}/{rows_in[container]:08d}{ending}"
                    names.append(canonical_name(path, split) if name.startswith(f"{split}/") else path)
                    shown = shown or f"{name!r}, now {names[-1]!r}"
                else:
                    names.append(name)
                rows_in[container] += 1
            self._rows.replace(number, name=names)
        self.notes.append(
            f"{pc.sum(shared.field('counts')).as_py():,} images share their names with others and are "
            f"called by container and row (such as {shown})"
        )

    def _classes_seen(self) -> tuple[str, ...]:
        seen = self._labels.keys() - {None}
        words = {label for label in seen if isinstance(label, str)}
        numbers = {label for label in seen if isinstance(label, int)}
        if words and numbers:
            raise PipelineError(
                f"{self.root}: some labels are names ({min(words)!r}, ...), others numbers ({min(numbers)}, ...); "
                "give all images one kind of label"
            )
        first = self.options.first_label
        if (largest := max(numbers, default=-1)) - first >= _MOST_CLASSES:
            raise PipelineError(
                f"{self.root}: the label {largest} would make {largest - first + 1:,} classes, at most "
                f"{_MOST_CLASSES:,} can be; number the classes from 0, or give names as labels"
            )
        return tuple(sorted(words)) if words else tuple(str(number) for number in range(first, largest + 1))

    def _class_numbers(self, classes: tuple[str, ...]) -> np.ndarray:
        """Return the number of the class that each label seen stands for, int32 [labels]; -1 for none."""
        if unusable := [name for name in classes if not name or "\n" in name]:
            raise PipelineError(f"{self.root}: the class name {unusable[0]!r} is empty or has a line break; rename it")
        numbers: dict[Label, int] = {name: number for number, name in enumerate(classes)}
        numbers |= {self.options.first_label + number: number for number in range(len(classes))}
        numbers[None] = -1
        if unknown := self._labels.keys() - numbers.keys():
            counted = {len(classes)} == unknown and 0 not in self._labels
            hint = "; if labels count from 1, set images.first_label=1" if counted else ""
            raise PipelineError(
                f"{self.root}: label {min(unknown, key=str)!r} is none of the {len(classes)} classes "
                f"({', '.join(classes[:3])}, ...); correct the label or the list of classes{hint}"
            )
        return np.array([numbers[label] for label in self._labels], np.int32)

    def _notes_on_numbers(self, classes: tuple[str, ...]) -> list[str]:
        numbers = [label for label in self._labels if isinstance(label, int)]
        if numbers and min(numbers) == 1 and not self.options.first_label:
            return [
                f"the labels are numbers from 1 and read as they are: class 0 ({classes[0]!r}) of {len(classes):,} has "
                "no images; if 1 is the first class, set images.first_label=1"
            ]
        if not numbers and list(classes) != in_order_of_number(classes):
            return [f"the classes are called by numbers and sorted as words: {', '.join(classes[:4])}, ..."]
        return []

    def _notes_on_labels(self, hint: str) -> list[str]:
        if None not in self._labels:
            return []
        table = self._rows.table()
        all_images = _counts(table["split"])
        without = _counts(table["split"].filter(pc.equal(table["label"], self._labels[None])))
        return [
            f"{split}: {without[split]:,} of {all_images[split]:,} images have no label{hint}"
            for split in sorted(without)
            if split != "test"  # a public test set has none
        ]


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(values).to_pylist()}
