"""Images inside Parquet files, as the Hugging Face hub stores ImageNet: `image: struct<bytes, path>, label: int64`.

The hub's copy appends the class to each file name (`n01440764_10026_n01440764.JPEG`); the canonical name puts it back
as a directory, so that the images are called what they are called in ILSVRC's tree. Other names of the two columns are
found where there is only one candidate, or given (`images.image_column`, `images.label_column`).
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.base import Scan
from pipeline.data.sources.contents import parquet_contents
from pipeline.data.sources.names import is_hidden, split_of_container
from pipeline.data.sources.rows import ScanRows
from pipeline.data.sources.walk import Passed, walk_files
from pipeline.engine.errors import PipelineError
from storage.image_index import ImageEntry

_WNID_SUFFIX = re.compile(r"_(n\d{8})(?=\.JPEG$)")
_EXPECTED = "image: struct<bytes: binary, path: string> (or binary) and, if there are labels, label: int64 or string"
_USUAL_LABELS = (
    "label",
    "labels",
    "class",
    "class_id",
    "class_name",
    "target",
    "category",
    "fine_label",
    "coarse_label",
)


class ParquetReader:
    """Reads one row group's images at a time and keeps exactly that one.

    Reading in the order (container, row_group, row_in_group) reads each row group once; in random order it reads a
    whole row group for every image.
    """

    def __init__(self, root: Path, image_column: str = "") -> None:
        self._root, self._wanted = root, image_column
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
            schema = self._file.schema_arrow
            name = _image_column(self._root / container, schema, self._wanted)
            column = f"{name}.bytes" if pa.types.is_struct(schema.field(name).type) else name
            table = self._file.read_row_group(row_group, columns=[column], use_threads=False)
            self._images, self._row_group = table[name], row_group
        return self._images


@dataclass(frozen=True)
class ParquetSource:
    """All Parquet files below `root`."""

    root: Path
    options: ImageSourceOptions

    def reader(self) -> ParquetReader:
        return ParquetReader(self.root, self.options.image_column)

    def scan(self) -> Scan:
        """Raises PipelineError: no Parquet files, a damaged one, other columns, or class names that disagree."""
        rows, passed = ScanRows(self.root, self.options), Passed()
        containers = sorted(file.path for file in walk_files(self.root, (".parquet",), passed))
        if not containers:
            raise PipelineError(f"{self.root}: no .parquet files found; check images.path, or set images.kind=folder")
        rows.left_out.update(passed.endings)
        classes: tuple[str, ...] = ()
        columns = None
        for container in containers:
            path = self.root / container
            try:
                with pq.ParquetFile(path, pre_buffer=False) as file:
                    columns = _Columns.of(path, file.schema_arrow, self.options)
                    classes = _agreed(path, classes, _class_names(file.schema_arrow, columns.label))
                    _add_rows(rows, file, container, columns)
                    rows.identify(container, parquet_contents(path, file.metadata))
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise PipelineError(
                    f"{path}: not a readable Parquet file ({_first_line(error)}); download it again"
                ) from error
        assert columns is not None
        rows.notes += columns.notes()
        return rows.build(classes=classes, unlabelled_hint=columns.hint())


@dataclass(frozen=True)
class _Columns:
    """Which columns of a file are taken: `label` is "" for none, `others` are the rest."""

    image: str
    label: str
    others: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, schema: pa.Schema, options: ImageSourceOptions) -> "_Columns":
        """Raises PipelineError when it is not clear which they are."""
        image = _image_column(path, schema, options.image_column)
        label = _label_column(path, schema, options.label_column)
        return cls(image, label, tuple(name for name in schema.names if name not in (image, label)))

    def notes(self) -> list[str]:
        taken = {"images": (self.image, "image"), "labels": (self.label, "label")}
        unusual = [
            f"the {what} are the column {name!r}" for what, (name, usual) in taken.items() if name not in ("", usual)
        ]
        return [f"{' and '.join(unusual)} (others: {', '.join(self.others) or 'none'})"] if unusual else []

    def hint(self) -> str:
        """Say of files without labels where they may be."""
        there = ", ".join((self.image, *self.others))
        return "" if self.label else f" (columns: {there}; images.label_column names the one with the labels)"


def _add_rows(rows: ScanRows, file: pq.ParquetFile, container: str, columns: _Columns) -> None:
    split, stem = split_of_container(container), PurePosixPath(container).stem
    row = 0
    for row_group in range(file.num_row_groups):
        for row_in_group, (path, label) in enumerate(_paths_and_labels(file, row_group, columns)):
            if path and _is_hidden(path):
                rows.left_out["hidden"] += 1
            else:
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


def _paths_and_labels(file: pq.ParquetFile, row_group: int, columns: _Columns) -> Iterator[tuple[str | None, Any]]:
    """Yield the path and the label of every row of a group. Only these two columns are read: the images' bytes are not
    touched."""
    image = file.schema_arrow.field(columns.image).type
    has_path = pa.types.is_struct(image) and image.get_field_index("path") >= 0
    wanted = [f"{columns.image}.path"] * has_path + [columns.label] * bool(columns.label)
    table = file.read_row_group(row_group, columns=wanted, use_threads=False) if wanted else None
    nothing = [None] * file.metadata.row_group(row_group).num_rows
    images = table[columns.image].to_pylist() if table is not None and has_path else nothing
    labels = table[columns.label].to_pylist() if table is not None and columns.label else nothing
    return zip(((image or {}).get("path") for image in images), labels, strict=True)


def _is_hidden(path: str) -> bool:
    """Tell a hidden file; a hidden directory is no matter: paths are those of another machine, often below its
    `.cache`."""
    return is_hidden(PurePosixPath(path).name) or "__MACOSX" in path


def _path_of_image(path: str) -> str:
    if "/" not in path and (match := _WNID_SUFFIX.search(path)):
        return f"{match[1]}/{_WNID_SUFFIX.sub('', path)}"
    return path


def _image_column(path: Path, schema: pa.Schema, wanted: str) -> str:
    """Return the column of the images. Raises PipelineError when there is none, or several and no way to choose."""
    usable = [field.name for field in schema if _holds_images(field.type)]
    if wanted or "image" in schema.names:
        usable = [name for name in usable if name == (wanted or "image")]
    if len(usable) == 1:
        return usable[0]
    several = f"; say which holds the images, such as images.image_column={usable[0]}" if usable else ""
    raise PipelineError(_unclear(path, schema, f"images.image_column={wanted}; " if wanted else "") + several)


def _label_column(path: Path, schema: pa.Schema, wanted: str) -> str:
    """Return the column of the labels, "" when there is none. Raises PipelineError as above."""
    usable = [field.name for field in schema if _holds_labels(field.type)]
    if wanted or "label" in schema.names:
        name = wanted or "label"
        if name not in usable:
            raise PipelineError(_unclear(path, schema, f"images.label_column={wanted}; " if wanted else ""))
        return name
    usual = [name for name in usable if name in _USUAL_LABELS or _class_names(schema, name)]
    if len(usual) > 1:
        choice = f"; say which holds the labels, such as images.label_column={usual[0]}"
        raise PipelineError(_unclear(path, schema, "") + choice)
    return usual[0] if usual else ""


def _unclear(path: Path, schema: pa.Schema, asked: str) -> str:
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    return f"{path}: {asked}found columns {found or 'none'}; expected {_EXPECTED}; rename or convert them"


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        kind = kind.field(index).type if index >= 0 else pa.null()
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def _holds_labels(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return pa.types.is_integer(kind) or any(test(kind) for test in texts)


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Return the names of the labels in the metadata that Hugging Face's datasets writes; () when there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
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
