"""The image index: row i means image i in every other store.

A Parquet file with one row per image, sorted by canonical name. The 64-bit id is a hash of that name, so a subset or
another layout of the same images (folder, Parquet, tar) gives an image the same id, and whatever is keyed by id (the
2 % feature sample) picks the same patches. Nothing here has opened an image: names and sizes only, and what stands for
their contents (`contents`), by which data sets of the same names and sizes differ.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import StoreInvalid

FILE_NAME = "images.parquet"

SCAN_SCHEMA = pa.schema(
    [
        ("name", pa.string()),  # canonical name: the same whatever the layout
        ("split", pa.string()),
        ("label", pa.int32()),  # -1: none
        ("container", pa.string()),  # the file that holds the bytes, relative to the source's root
        ("key", pa.string()),  # member of a tar, path inside Parquet, else ""
        ("offset", pa.int64()),  # of the bytes inside a tar, else 0
        ("row_group", pa.int32()),  # Parquet, else -1
        ("row_in_group", pa.int32()),
        ("bytes", pa.int64()),  # -1: not known before reading (Parquet)
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("image_id", pa.uint64()),
        *SCAN_SCHEMA,
        ("unit", pa.int32()),  # the number of its shard, under the name that every stored index has for it
        ("crc32c", pa.uint32()),  # of the encoded image, where it was indexed by its contents; else null
    ],
)
_AT_ONCE = 1 << 14  # names that are Python's objects at one time
_READING_ORDER = ("container", "row_group", "row_in_group", "offset")


class ImageStatus(IntEnum):
    """What became of an image when it was read; the value in every store."""

    VALID = 0
    UNREADABLE = 1
    EMPTY = 2
    NOT_AN_IMAGE = 3
    DAMAGED = 4
    TOO_LARGE = 5


@dataclass(frozen=True)
class ImageEntry:
    """Where one image's bytes are."""

    row: int
    name: str
    container: str
    key: str
    offset: int
    row_group: int
    row_in_group: int
    bytes: int
    crc32c: int | None = None


@dataclass(frozen=True)
class ImageIndex:
    """The images of one data set, in canonical order. `table` has INDEX_SCHEMA and no gaps in `row`.

    `contents` is a digest of what is known of the images' contents beyond `table`; "" for nothing.
    """

    table: pa.Table
    classes: tuple[str, ...]
    source_kind: str
    contents: str = ""

    @classmethod
    def build(
        cls, scanned: pa.Table, *, classes: Sequence[str], source_kind: str, images_per_shard: int, contents: str = ""
    ) -> "ImageIndex":
        """Sort what a source found, give every image its row, id and shard.

        A shard is a group of images that is read, written and resumed together: `images_per_shard` consecutive images
        in the order in which the source is read fast. For files and tars of sorted names that is row order; the rows
        of a shuffled Parquet data set are far apart, and shards in row order would read all of it once per shard.

        Raises:
            StoreInvalid: two images have the same canonical name, or (never seen) the same 64-bit hash of it.
        """
        table = compact(scanned.cast(SCAN_SCHEMA).sort_by("name"))
        count = table.num_rows
        _refuse_duplicates(table["name"])
        ids = _image_ids(table["name"])
        columns = {
            "row": np.arange(count, dtype=np.int64),
            "image_id": ids,
            **{field.name: table[field.name] for field in SCAN_SCHEMA},
            "unit": _shards(table, images_per_shard, source_kind),
            "crc32c": pa.nulls(count, pa.uint32()),
        }
        return cls(pa.table(columns, schema=INDEX_SCHEMA), tuple(classes), source_kind, contents)

    def with_contents(self, contents: str, crc32c: pa.Array) -> "ImageIndex":
        """Return an index that knows its images by their bytes; `crc32c` uint32 [images], null where unreadable."""
        place = INDEX_SCHEMA.get_field_index("crc32c")
        return replace(self, contents=contents, table=self.table.set_column(place, INDEX_SCHEMA.field(place), crc32c))

    def write(self, folder: Path) -> None:
        metadata = {"classes": "\n".join(self.classes), "source_kind": self.source_kind, "contents": self.contents}
        table = self.table.replace_schema_metadata(metadata)
        pq.write_table(table, folder / FILE_NAME, compression="zstd", row_group_size=1 << 17)

    @classmethod
    def read(cls, folder: Path) -> "ImageIndex":
        """Read the index in artifact `folder`. Raises StoreInvalid when the file has other columns."""
        table = compact(pq.read_table(folder / FILE_NAME))
        if table.schema.remove_metadata() != INDEX_SCHEMA:
            raise StoreInvalid(
                f"{folder / FILE_NAME}: expected columns {INDEX_SCHEMA.names}, found {table.column_names}"
            )
        metadata = table.schema.metadata
        classes = metadata[b"classes"].decode()
        return cls(
            table.replace_schema_metadata(None),
            tuple(classes.split("\n")) if classes else (),
            metadata[b"source_kind"].decode(),
            metadata[b"contents"].decode(),
        )

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def image_ids(self) -> np.ndarray:
        """uint64 [images]."""
        return self.table["image_id"].to_numpy()

    @cached_property
    def labels(self) -> np.ndarray:
        """int32 [images], -1 where there is no label."""
        return self.table["label"].to_numpy()

    @cached_property
    def splits(self) -> dict[str, int]:
        """Images per split."""
        counts = pc.value_counts(self.table["split"]).to_pylist()
        return {item["values"]: item["counts"] for item in sorted(counts, key=lambda item: item["values"])}

    def rows_of_split(self, split: str) -> np.ndarray:
        """Return the rows of a split, ascending, int64."""
        return np.flatnonzero(pc.equal(self.table["split"], split).to_numpy())

    @cached_property
    def shards(self) -> tuple[np.ndarray, ...]:
        """The rows of each shard (int64), in the order in which they are read fast."""
        keys = [(name, "ascending") for name in ("unit", *_READING_ORDER)]
        rows = pc.sort_indices(self.table, sort_keys=keys).to_numpy().astype(np.int64)
        shard = self.table["unit"].to_numpy()[rows]
        return tuple(np.split(rows, np.flatnonzero(np.diff(shard)) + 1)) if len(rows) else ()

    def entries(self, rows: np.ndarray) -> Iterator[ImageEntry]:
        """Yield where the images of `rows` are, in that order."""
        names = [field for field in ImageEntry.__dataclass_fields__]
        for item in self.table.select(names).take(pa.array(rows)).to_pylist():
            yield ImageEntry(**item)

    def entry(self, row: int) -> ImageEntry:
        return next(self.entries(np.array([row])))

    def name(self, row: int) -> str:
        return self.table["name"][row].as_py()


def compact(table: pa.Table) -> pa.Table:
    """Return the table with one chunk a column. One column at a time is there twice, if nobody else holds the table."""
    columns, schema = table.columns, table.schema
    del table
    for number, column in enumerate(columns):
        columns[number] = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return pa.Table.from_arrays(columns, schema=schema)


def image_id(name: str) -> int:
    """Hash a canonical name to 64 bits: BLAKE2b, little endian."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def _image_ids(names: pa.ChunkedArray) -> np.ndarray:
    ids = np.empty(len(names), np.uint64)
    for start in range(0, len(names), _AT_ONCE):
        some = names.slice(start, _AT_ONCE).to_pylist()
        ids[start : start + len(some)] = [image_id(name) for name in some]
    ordered = np.sort(ids)
    if (ordered[1:] == ordered[:-1]).any():
        raise StoreInvalid("two image names share one 64-bit hash; rename one of the images and index again")
    return ids


def _refuse_duplicates(sorted_names: pa.ChunkedArray) -> None:
    same = pc.equal(sorted_names.slice(1), sorted_names.slice(0, max(len(sorted_names) - 1, 0)))
    if pc.any(same).as_py():
        name = sorted_names[pc.index(same, True).as_py()].as_py()
        raise StoreInvalid(
            f"two images are called {name!r}; every image needs a name of its own: rename one, or index the "
            "folders as separate data sets"
        )


def _shards(sorted_table: pa.Table, images_per_shard: int, source_kind: str) -> np.ndarray:
    number = np.arange(sorted_table.num_rows, dtype=np.int32) // images_per_shard
    if source_kind != "parquet":  # random access is cheap: row order
        return number
    order = pc.sort_indices(sorted_table, sort_keys=[(name, "ascending") for name in _READING_ORDER]).to_numpy()
    shards = np.empty_like(number)
    shards[order] = number
    return shards
