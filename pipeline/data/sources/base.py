"""Where images come from: the options, and the contract that folders, Parquet files and tar shards all fulfil.

A source is asked two things. `scan()` lists every image by name and size without opening one (seconds, even for
ImageNet); `reader()` gives the bytes of one image. Decoding is not its business (`pipeline/data/decode.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.formats import endings_in_words
from storage.image_index import ImageEntry


@dataclass(frozen=True)
class Scan:
    """What a source holds: `table` has SCAN_SCHEMA in any order, `label` counts into `classes`, `notes` warn people.

    `contents` is a digest of what was cheap to have of the containers' contents (`contents.py`); "" where that is no
    more than the table says. `left_out` counts the files that are no images, by ending.
    """

    table: pa.Table
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    contents: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)

    def in_words(self) -> str:
        """Return what was understood, in a line: splits, classes, images without a label, what was left out."""
        counts = {item["values"]: item["counts"] for item in pc.value_counts(self.table["split"]).to_pylist()}
        splits = ", ".join(f"{split} {counts[split]:,}" for split in ("train", "val", "test") if split in counts)
        unlabelled = pc.sum(pc.less(self.table["label"], 0)).as_py()
        left_out = endings_in_words(self.left_out) or "nothing"
        return (
            f"understood as images: {len(self.table):,}; splits: {splits}; classes: {_counted(self.classes)}; "
            f"without a label: {unlabelled:,}; left out: {left_out}"
        )


class ImageReader(Protocol):
    """Reads images inside one worker process, and keeps no more than a few files open. Not thread-safe."""

    def read(self, entry: ImageEntry) -> bytes:
        """Return the encoded image. Raises OSError when it cannot be had."""
        ...

    def close(self) -> None:
        """Let go of open files; the reader opens them again when asked to read."""
        ...


class ImageSource(Protocol):
    """A set of images somewhere. Picklable, holds nothing open."""

    def scan(self) -> Scan:
        """Return names, labels and places of all images. Raises PipelineError when the layout makes no sense."""
        ...

    def reader(self) -> ImageReader:
        """Return a new reader; make it in the process that uses it."""
        ...


def _counted(names: tuple[str, ...]) -> str:
    few = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names):,} ({few})" if names else "none"
