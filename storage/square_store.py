"""Squares on disk: the central square of every image, uint8 [images, 3, side, side], and its status, by row.

    squares/00012.npy    those of one shard, [n, 3, side, side], in the order in which its images were read; a bad
                         image's is black
    images/00012.arrow   what became of each of its images (`image_records.py`)
    status.npy           uint8 [images]: ImageStatus of every row
    places.npy           int64 [images]: where a row's square is in the files above, as if they were one
    squares.json         of which image index, how large, how they were decoded, and how many each file has

A file for each shard, as an artifact of 193 GB (ImageNet at 224 pixels) is written, checksummed, uploaded and mended by
pieces. All processes of a node map the same files: what one has read lies in the page cache for the others.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from storage import image_records
from storage.errors import StoreInvalid
from storage.files import write_json
from storage.image_index import ImageStatus
from storage.shards import ShardFolder

PART = "squares"
FORMAT = "mapet-squares/1"
_ABOUT, _STATUS, _PLACES = "squares.json", "status.npy", "places.npy"
_MOST_MAPS = 512  # files that are mapped at once: each holds one open, and ImageNet has 313 to train on


def square_bytes(image_size: int) -> int:
    """Return what one square takes."""
    return 3 * image_size**2


@dataclass(frozen=True)
class SquareFormat:
    """How the squares of a shard are written. A `storage.shards.PartFormat`."""

    image_size: int
    suffix: str = ".npy"

    def writer(self, path: Path) -> "SquareWriter":
        return SquareWriter(path, self.image_size)


class SquareWriter:
    """Writes a .npy file of squares, some at a time."""

    def __init__(self, path: Path, image_size: int) -> None:
        self._file, self._shape, self._count = path.open("wb"), (3, image_size, image_size), 0
        self._write_header()

    def write_batch(self, squares: np.ndarray) -> None:
        """Append squares, uint8 [n, 3, side, side]."""
        if squares.dtype != np.uint8 or squares.shape[1:] != self._shape:
            raise StoreInvalid(
                f"{self._file.name}: expected squares uint8 [n, {', '.join(map(str, self._shape))}], found "
                f"{squares.dtype} {list(squares.shape)}"
            )
        self._file.write(np.ascontiguousarray(squares).data)
        self._count += len(squares)

    def _write_header(self) -> None:
        # As long whatever the number of squares: numpy leaves room for the digits of a first axis that grows.
        about = {"descr": "|u1", "fortran_order": False, "shape": (self._count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, about)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        if exception is None:
            self._file.seek(0)
            self._write_header()
        self._file.close()


def write_square_store(
    shards: ShardFolder,
    numbers: Iterable[int],
    *,
    images: int,
    image_size: int,
    attributes: Mapping[str, Any],
) -> None:
    """Put together a store from shards that are done: parts PART and `image_records.PART`.

    Args:
        numbers: of the shards.
        images: rows of the image index.
        attributes: what the squares are; `image_index`, its digest, among them.

    Raises:
        StoreInvalid: the shards leave a row out or name one twice.
    """
    status, places, seen = np.zeros(images, np.uint8), np.zeros(images, np.int64), np.zeros(images, np.uint8)
    files: list[tuple[str, int]] = []
    first = 0
    for number in numbers:
        records = shards.read(image_records.PART, number)
        rows = records["row"].to_numpy()
        status[rows], places[rows] = records["status"].to_numpy(), np.arange(first, first + len(rows))
        np.add.at(seen, rows, 1)
        files.append((shards.path(PART, number, SquareFormat.suffix).name, len(rows)))
        first += len(rows)
    if (seen != 1).any():
        row = int(np.flatnonzero(seen != 1)[0])
        raise StoreInvalid(f"{shards.folder}: row {row} is there {seen[row]} times, expected once; run the stage again")
    np.save(shards.folder / _STATUS, status)
    np.save(shards.folder / _PLACES, places)
    about = {**attributes, "format": FORMAT, "image_size": image_size, "files": files}
    write_json(shards.folder / _ABOUT, about)


class SquareStore:
    """The squares of an image index. Cheap to pickle, and shared by forks and threads.

    Attributes:
        folder: of the artifact.
        image_size: their side.
        attributes: what was said of them when they were written.
        index_digest: of the image index whose rows they have.
        status: ImageStatus of every row, uint8 [images].
    """

    def __init__(self, folder: Path, attributes: Mapping[str, Any], status: np.ndarray, places: np.ndarray) -> None:
        self.folder, self.attributes, self.status = folder, attributes, status
        self.image_size, self.index_digest = int(attributes["image_size"]), str(attributes.get("image_index", ""))
        self._places = places
        self._names, self._counts = zip(*attributes["files"], strict=True)
        self._ends = np.cumsum(self._counts)
        self._mapped = lru_cache(_MOST_MAPS)(self._map)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises StoreInvalid when there is no square store, or one of another format."""
        try:
            attributes = json.loads((folder / _ABOUT).read_text())
            status, places = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (_STATUS, _PLACES))
        except (OSError, ValueError) as error:
            raise StoreInvalid(f"{folder}: expected a square store, found none ({error})") from error
        if attributes.get("format") != FORMAT:
            raise StoreInvalid(f"{folder}: expected format {FORMAT!r}, found {attributes.get('format')!r}")
        return cls(folder, attributes, np.asarray(status), places)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).open, (self.folder,)

    def __len__(self) -> int:
        return len(self.status)

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy the squares of `rows` [B], in any order, into `out` uint8 [B, 3, side, side].

        Raises:
            StoreInvalid: a row has no square, as its image is bad, or a file is not what it should be.
        """
        expected = (len(rows), 3, self.image_size, self.image_size)
        if out.shape != expected or out.dtype != np.uint8:
            raise ValueError(f"expected room for squares uint8 {list(expected)}, got {out.dtype} {list(out.shape)}")
        if (bad := self.status[rows] != ImageStatus.VALID).any():
            row = int(rows[np.flatnonzero(bad)[0]])
            raise StoreInvalid(
                f"{self.folder}: row {row} has no square: its image is {ImageStatus(self.status[row]).name}"
            )
        places = self._places[rows]
        for target, place, file in zip(out, places, np.searchsorted(self._ends, places, side="right"), strict=True):
            squares = self._mapped(int(file))
            target[:] = squares[place - self._ends[file] + len(squares)]

    def _map(self, file: int) -> np.ndarray:
        path = self.folder / PART / self._names[file]
        try:
            squares: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise StoreInvalid(
                f"{path}: expected squares, found something else ({error}); run the stage again"
            ) from error
        wanted = (self._counts[file], 3, self.image_size, self.image_size)
        if squares.shape != wanted or squares.dtype != np.uint8:
            raise StoreInvalid(f"{path}: expected uint8 {list(wanted)}, found {squares.dtype} {list(squares.shape)}")
        return squares
