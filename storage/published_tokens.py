"""Tokens as a directory that can be uploaded as a data set: Parquet files of images and their tokens, and no image.

    README.md                       what a data-set hub shows
    tokens.json                     what the tokens are, and the SHA-256 of every other file
    data/train-00000-of-00003.parquet   one row per image: name, size and checksum of its bytes, label, tokens
    codebook.safetensors            centroids, where tokens are ids of such

The layout is that of the Hugging Face hub (`datasets.load_dataset(DIR)`); pyarrow alone reads it, too. Whoever has the
images finds them again by name, or by size and CRC-32C of the encoded bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import StoreInvalid
from storage.files import canonical_json, checksums, files_below, sha256_text, write_json
from storage.recorded_files import differences

ABOUT, DATA = "tokens.json", "data"
FORMAT = "mapet-published-tokens/1"
ROWS_PER_FILE = 1 << 18
_COLUMNS = [
    ("name", pa.string()),  # canonical, as in an image index
    ("split", pa.string()),
    ("label", pa.int32()),  # of the classes in tokens.json; -1: none
    ("bytes", pa.int64()),  # of the encoded image
    ("crc32c", pa.uint32()),  # of the same
    ("width", pa.int32()),
    ("height", pa.int32()),
]


def published_schema(patches: int) -> pa.Schema:
    """Return the columns of a published image with so many patches; tokens are in raster order."""
    return pa.schema([*_COLUMNS, ("tokens", pa.list_(pa.uint16(), patches))])


def write_rows(folder: Path, table: pa.Table) -> None:
    """Write the rows of each split to files of its own below `folder`/data. `table`: of `published_schema`."""
    (folder / DATA).mkdir()
    for split in sorted(set(table["split"].to_pylist())):
        rows = table.filter(pc.equal(table["split"], split))
        count = -(-len(rows) // ROWS_PER_FILE)
        for number in range(count):
            path = folder / DATA / f"{split}-{number:05d}-of-{count:05d}.parquet"
            some = rows.slice(number * ROWS_PER_FILE, ROWS_PER_FILE)
            # Of random numbers below a power of two: bit packing is all that helps, and readers of every kind know it.
            pq.write_table(some, path, compression="zstd", row_group_size=1 << 14, use_dictionary=["split"])


def seal(folder: Path, about: Mapping[str, Any]) -> None:
    """Write `about` beside the checksums of all files that are there: the last thing that is written."""
    files = checksums(folder, files_below(folder))
    write_json(folder / ABOUT, {"format": FORMAT, **about, "files": files})


@dataclass(frozen=True)
class PublishedTokens:
    """A directory of published tokens, every file of which is what was published.

    Attributes:
        about: what the tokens are, by the names of a token store's attributes.
        digest: of all of it.
    """

    folder: Path
    about: Mapping[str, Any]
    digest: str

    @classmethod
    def read(cls, folder: Path) -> "PublishedTokens":
        """Read what the directory says of itself, and compare every file with its checksum.

        Files that were added, such as a hub's own, are passed over.

        Raises:
            StoreInvalid: it is no such directory, or a file is damaged or missing.
        """
        try:
            about = json.loads((folder / ABOUT).read_text())
            files = about["files"]
            known = about["format"] == FORMAT and isinstance(files, dict)
        except (OSError, ValueError, KeyError, TypeError):
            known, about, files = False, {}, {}
        if not known:
            raise StoreInvalid(f"{folder}: expected published tokens with {ABOUT}; `mapet publish-tokens` makes them")
        # The card is there to be edited: a licence, a name.
        wrong = differences(folder, {name: file for name, file in files.items() if name.startswith(f"{DATA}/")})
        if wrong:
            name, words = next(iter(wrong.items()))
            raise StoreInvalid(f"{folder / name}: {words}; copy or download the directory again")
        told = {name: value for name, value in about.items() if name not in ("format", "files")}
        return cls(folder, told, sha256_text(canonical_json({"about": told, "files": files}))[:64])

    def rows(self) -> pa.Table:
        """Read all rows, in `published_schema`'s columns. Raises StoreInvalid where a file has others."""
        schema = published_schema(self.patches)
        tables = [pq.read_table(path) for path in sorted((self.folder / DATA).glob("*.parquet"))]
        for table in tables:
            if table.schema.remove_metadata() != schema:
                raise StoreInvalid(f"{self.folder}: expected columns {schema.names}, found {table.column_names}")
        return pa.concat_tables(tables or [schema.empty_table()])

    @property
    def patches(self) -> int:
        rows, columns = self.about["grid"]
        return int(rows * columns)
