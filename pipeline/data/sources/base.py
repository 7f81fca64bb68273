"""Where images come from: the options, and the contract that folders, Parquet files and tar shards all fulfil.

A source is asked two things. `scan()` lists every image by name and size without opening one (seconds, even for
ImageNet); `reader()` gives the bytes of one image. Decoding is not its business (`pipeline/data/decode.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from models.options import Options, PathText
from pipeline.data.formats import endings_in_words
from pipeline.data.sources.layout import TopFolders
from pipeline.engine.fingerprint import SETTING
from storage.image_index import ImageEntry


class ImageSourceOptions(Options):
    """Which images, and how they are laid out on disk."""

    kind: Literal["demo", "folder", "parquet", "webdataset", "stanford_cars", "food101", "fgvc_aircraft"] = "folder"
    """folder: class directories (ImageFolder, ILSVRC); parquet: Hugging Face's layout; webdataset: plain tar shards;
    stanford_cars, food101, fgvc_aircraft: those data sets as published, their test images as `val`."""
    path: PathText = Field(default="", json_schema_extra=SETTING)
    """Root directory of the images; ~ is expanded. Where it lies does not change a result."""
    split: Literal["", "train", "val", "test"] = ""
    """The split of images for which neither directory nor file names tell one."""
    top_folders: TopFolders = ""
    """What the uppermost directories are where their names leave it open (`train2017`, a class called `train`): splits
    or classes. Empty: what is clear is recognised (and told), what is not is asked."""
    labels_csv: PathText = Field(default="", json_schema_extra=SETTING)
    """Kaggle's LOC_val_solution.csv (ImageId,PredictionString): labels for a flat val/. Empty: looked for near path."""
    json_label_key: str = "label"
    """webdataset: the key of the label in a sample's .json, when it has no .cls."""
    member_ending: str = ""
    """webdataset: what the images' members are called after the first dot, such as input.png, where a sample has
    several images. Empty: the ending of any image format."""
    image_column: str = ""
    """parquet: the column of the images. Empty: `image`, or the only one that can be."""
    label_column: str = ""
    """parquet: the column of the labels. Empty: `label`, or the only one of a usual name (labels, fine_label, ...)."""
    first_label: int = Field(default=0, ge=0, le=10**6)
    """The number of the first class, where labels are numbers: 1 for labels that are counted from 1."""
    images_per_unit: int = Field(default=4096, ge=1, le=2**31 - 1)
    """Images that are read, written and resumed together."""
    identity: Literal["listing", "content"] = Field(default="listing", json_schema_extra=SETTING)
    """What makes two data sets the same one. listing: names, labels and sizes, of Parquet files their footers too, of
    tars their headers; content: every byte of every image, which is read once and remembered until its file's size or
    time of change is another. It tells apart what a file edited to the same size hides from the listing."""


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
        """What was understood, in a line: splits, classes, images without a label, what was left out."""
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
        """The encoded image. Raises OSError when it cannot be had."""
        ...

    def close(self) -> None:
        """Let go of open files; the reader opens them again when asked to read."""
        ...


class ImageSource(Protocol):
    """A set of images somewhere. Picklable, holds nothing open."""

    def scan(self) -> Scan:
        """Names, labels and places of all images. Raises PipelineError when the layout makes no sense."""
        ...

    def reader(self) -> ImageReader:
        """A new reader; make it in the process that uses it."""
        ...


def _counted(names: tuple[str, ...]) -> str:
    few = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names):,} ({few})" if names else "none"
