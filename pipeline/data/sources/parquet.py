"""Images inside Parquet files, as the Hugging Face hub stores ImageNet: `image: struct<bytes, path>, label: int64`.

The hub's copy appends the class to each file name (`n01440764_10026_n01440764.JPEG`); the canonical name puts it back
as a directory, so that the images are called what they are called in ILSVRC's tree.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.sources.base import ImageSourceOptions, Scan
from pipeline.data.sources.contents import parquet_contents
from pipeline.data.sources.names import split_of_container
from pipeline.data.sources.rows import ScanRows
from pipeline.data.sources.walk import walk_files
from pipeline.errors import PipelineError
from storage.image_index import ImageEntry

_WNID_SUFFIX = re.compile(r"_(n\d{8})(?=\.JPEG$)")
_EXPECTED = "image: struct<bytes: binary, path: string> (or binary) and, if there are labels, label: int64 or string"


class ParquetReader:
    """Reads one row group's images at a time and keeps exactly that one.

    Reading in the order (container, row_group, row_in_group) reads each row group once; in random order it reads a
    whole row group for every image.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._container = ""
        self._file: pq.ParquetFile | None = None
        self._row_group = -1
        self._images: pa.ChunkedArray | None = None

    def read(self, entry: ImageEntry) -> bytes:
        try:
            value = self._load(entry.container, entry.row_group)[entry.row_in_group].as_py()
        except (pa.ArrowException, IndexError) as error:
            raise OSError(f"row group {entry.row_group} of {entry.container}: {_first_line(error)}") from error
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise OSError(f"row {entry.row_in_group} of row group {entry.row_group} of {entry.container} has no bytes")
        return data

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._images, self._container, self._row_group = None, None, "", -1

    def _load(self, container: str, row_group: int) -> pa.ChunkedArray:
        if container != self._container or self._file is None:
            self.close()
            self._file = pq.ParquetFile(self._root / container, pre_buffer=False)
            self._container = container
        if row_group != self._row_group or self._images is None:
            self._images = None  # before the next one is read: two row groups would be twice the memory
            column = "image.bytes" if pa.types.is_struct(self._file.schema_arrow.field("image").type) else "image"
            table = self._file.read_row_group(row_group, columns=[column], use_threads=False)
            self._images, self._row_group = table["image"], row_group
        return self._images


@dataclass(frozen=True)
class ParquetSource:
    """All Parquet files below `root`."""

    root: Path
    options: ImageSourceOptions

    def reader(self) -> ParquetReader:
        return ParquetReader(self.root)

    def scan(self) -> Scan:
        """Raises PipelineError: no Parquet files, a damaged one, other columns, or class names that disagree."""
        rows = ScanRows(self.root, self.options)
        containers = sorted(file.path for file in walk_files(self.root, (".parquet",)))
        if not containers:
            raise PipelineError(f"{self.root}: no .parquet files found; check images.path, or set images.kind=folder")
        classes: tuple[str, ...] = ()
        for container in containers:
            path = self.root / container
            try:
                with pq.ParquetFile(path, pre_buffer=False) as file:
                    _check_schema(path, file.schema_arrow)
                    classes = _agreed(path, classes, _class_names(file.schema_arrow))
                    _add_rows(rows, file, container)
                    rows.identify(container, parquet_contents(path, file.metadata))
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise PipelineError(
                    f"{path}: not a readable Parquet file ({_first_line(error)}); download it again"
                ) from error
        return rows.build(classes=classes)


def _add_rows(rows: ScanRows, file: pq.ParquetFile, container: str) -> None:
    split, stem = split_of_container(container), PurePosixPath(container).stem
    row = 0
    for row_group in range(file.num_row_groups):
        for row_in_group, (path, label) in enumerate(_paths_and_labels(file, row_group)):
            rows.add(
                _path_of_image(path) if path else f"{stem}/{row:08d}",
                told_split=split,
                label=label,
                container=container,
                key=path or "",
                row_group=row_group,
                row_in_group=row_in_group,
            )
            row += 1


def _paths_and_labels(file: pq.ParquetFile, row_group: int) -> Iterator[tuple[str | None, Any]]:
    """Reads these two columns only; the images' bytes are not touched."""
    schema = file.schema_arrow
    image = schema.field("image").type
    has_path = pa.types.is_struct(image) and image.get_field_index("path") >= 0
    has_label = "label" in schema.names
    columns = ["image.path"] * has_path + ["label"] * has_label
    table = file.read_row_group(row_group, columns=columns, use_threads=False) if columns else None
    nothing = [None] * file.metadata.row_group(row_group).num_rows
    images = table["image"].to_pylist() if table is not None and has_path else nothing
    labels = table["label"].to_pylist() if table is not None and has_label else nothing
    return zip(((image or {}).get("path") for image in images), labels, strict=True)


def _path_of_image(path: str) -> str:
    if "/" not in path and (match := _WNID_SUFFIX.search(path)):
        return f"{match[1]}/{_WNID_SUFFIX.sub('', path)}"
    return path


def _check_schema(path: Path, schema: pa.Schema) -> None:
    image = schema.field("image").type if "image" in schema.names else pa.null()
    if pa.types.is_struct(image):
        index = image.get_field_index("bytes")
        image = image.field(index).type if index >= 0 else pa.null()
    label = schema.field("label").type if "label" in schema.names else pa.int64()
    usable = pa.types.is_integer(label) or pa.types.is_string(label) or pa.types.is_large_string(label)
    if not usable or not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise PipelineError(f"{path}: found columns {found or 'none'}; expected {_EXPECTED}; rename or convert them")


def _class_names(schema: pa.Schema) -> tuple[str, ...]:
    """The names of `label` in the metadata that Hugging Face's datasets writes; () when there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(names) if isinstance(names, list) else ()


def _agreed(path: Path, known: tuple[str, ...], found: tuple[str, ...]) -> tuple[str, ...]:
    if known and found and known != found:
        raise PipelineError(
            f"{path}: its metadata name {len(found)} classes, which are not the {len(known)} of the files before it; "
            "give the files of one data set"
        )
    return known or found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
