"""Collect a scan row by row: names, splits and labels get their final form here, the same for every layout."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from pipeline.data.formats import ENDINGS, ending_of, endings_in_words
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.base import Scan
from pipeline.data.sources.layout import Layout, read_layout
from pipeline.data.sources.names import canonical_name, clean_path, in_order_of_number
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
        self._columns: dict[str, list] = {field.name: [] for field in SCAN_SCHEMA}
        self._labels: list[Label] = self._columns["label"]
        self._contents: dict[str, str] = {}

    def identify(self, container: str, digest: str) -> None:
        """Add what stands for the contents of a file that holds several images."""
        self._contents[container] = digest

    @property
    def containers(self) -> list[str]:
        return self._columns["container"]

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
        row = (clean_path(path), told_split, known, container, key, offset, row_group, row_in_group, size)
        for column, value in zip(self._columns.values(), row, strict=True):
            column.append(value)

    def build(self, *, layout: Layout | None = None, classes: Sequence[str] = (), unlabelled_hint: str = "") -> Scan:
        """Return the scan. Without `classes` they are the sorted class names seen, or the numbers up to the largest.

        Args:
            layout: of the paths whose container tells no split; read from them when not given.

        Raises:
            PipelineError: no images; some with a split and some without; labels that do not fit `classes`.
        """
        if not self._labels:
            left_out = endings_in_words(self.left_out)
            there = f"; there are {left_out}" if left_out else ""
            raise PipelineError(f"{self.root}: no images found; check images.path and images.kind{there}")
        self._name_images(layout or self._layout())
        if self.options.kind in ("parquet", "webdataset"):
            self._tell_namesakes_apart()
        names = tuple(classes) or self._classes_seen()
        table = pa.table({**self._columns, "label": self._class_numbers(names)}, schema=SCAN_SCHEMA)
        notes = (*self.notes, *self._notes_on_numbers(names), *self._notes_on_labels(unlabelled_hint))
        contents = sha256_text(canonical_json(self._contents)) if self._contents else ""
        return Scan(table, names, notes, contents, +self.left_out)

    def _layout(self) -> Layout:
        told = zip(self._columns["name"], self._columns["split"], strict=True)
        untold = [path for path, split in told if not split]
        return read_layout(untold, self.root, self.options.top_folders) if untold else Layout()

    def _name_images(self, layout: Layout) -> None:
        """Put canonical names and splits in place of paths and what containers tell."""
        names, splits, otherwise = self._columns["name"], self._columns["split"], self.options.split
        without: list[int] = []
        for row, (path, told) in enumerate(zip(names, splits, strict=True)):
            if told:
                names[row] = canonical_name(path, told)
                continue
            splits[row], names[row], _ = layout.place(path)
            if not splits[row]:
                without.append(row)
        self.notes += layout.notes()
        if otherwise and not without:
            self.notes.append(
                f"images.split={otherwise} is not used: all images are in directories or files that tell their split"
            )
        if without and not otherwise and len(without) < len(names):
            raise PipelineError(
                f"{self.root}: {len(without):,} images (such as {names[without[0]]!r}) tell no split, the others are "
                f"{', '.join(sorted(set(splits) - {''}))}; move them away, count them with images.split=train, or, if "
                "directories that are called like a split are classes, set images.top_folders=classes"
            )
        for row in without:
            splits[row] = otherwise or "train"
            names[row] = f"{otherwise}/{names[row]}" if otherwise else names[row]

    def _tell_namesakes_apart(self) -> None:
        """Rename images that share a name, by their container and row: in many shards and classes the numbers start
        again."""
        names = self._columns["name"]
        counts = Counter(names)
        if len(counts) == len(names):
            return
        rows_in: Counter[str] = Counter()
        shown = ""
        for row, (name, container, split) in enumerate(
            zip(names, self._columns["container"], self._columns["split"], strict=True)
        ):
            if counts[name] > 1:
                ending = ending_of(name) if ending_of(name) in ENDINGS else ""
                path = f"{PurePosixPath(container).with_suffix('')}/{rows_in[container]:08d}{ending}"
                names[row] = canonical_name(path, split) if name.startswith(f"{split}/") else path
                shown = shown or f"{name!r}, now {names[row]!r}"
            rows_in[container] += 1
        self.notes.append(
            f"{sum(count for count in counts.values() if count > 1):,} images share their names with others and are "
            f"called by container and row (such as {shown})"
        )

    def _classes_seen(self) -> tuple[str, ...]:
        seen = set(self._labels) - {None}
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
        """Return the number of each image's class, int32 [images]; -1 without a label."""
        if unusable := [name for name in classes if not name or "\n" in name]:
            raise PipelineError(f"{self.root}: the class name {unusable[0]!r} is empty or has a line break; rename it")
        numbers: dict[Label, int] = {name: number for number, name in enumerate(classes)}
        numbers |= {self.options.first_label + number: number for number in range(len(classes))}
        numbers[None] = -1
        if unknown := set(self._labels) - numbers.keys():
            counted = {len(classes)} == unknown and 0 not in self._labels
            hint = "; if labels count from 1, set images.first_label=1" if counted else ""
            raise PipelineError(
                f"{self.root}: label {min(unknown, key=str)!r} is none of the {len(classes)} classes "
                f"({', '.join(classes[:3])}, ...); correct the label or the list of classes{hint}"
            )
        return np.fromiter((numbers[label] for label in self._labels), np.int32, len(self._labels))

    def _notes_on_numbers(self, classes: tuple[str, ...]) -> list[str]:
        numbers = [label for label in set(self._labels) if isinstance(label, int)]
        if numbers and min(numbers) == 1 and not self.options.first_label:
            return [
                f"the labels are numbers from 1 and read as they are: class 0 ({classes[0]!r}) of {len(classes):,} has "
                "no images; if 1 is the first class, set images.first_label=1"
            ]
        if not numbers and list(classes) != in_order_of_number(classes):
            return [f"the classes are called by numbers and sorted as words: {', '.join(classes[:4])}, ..."]
        return []

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
