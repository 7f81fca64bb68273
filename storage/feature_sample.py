"""The feature sample: some of the patch features of a data set, and which image and patch each came from.

Parts hold the vectors in the order in which images were read; `FeatureSample` gives them in canonical order (by row,
then patch), so that k-means sees the same sequence whatever the layout of the images.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage.errors import StoreInvalid
from storage.shards import part_paths, read_part

PART = "features"


def schema(width: int) -> pa.Schema:
    """Describe one row per vector; `sampled` is false only for what `keep="all"` stores beyond the sample."""
    return pa.schema(
        [
            ("row", pa.int64()),
            ("patch", pa.int32()),
            ("sampled", pa.bool_()),
            ("vector", pa.list_(pa.float16(), width)),
        ]
    )


def record_batch(rows: np.ndarray, patches: np.ndarray, sampled: np.ndarray, vectors: np.ndarray) -> pa.RecordBatch:
    """Join `rows`, `patches` and `sampled`, [n] each, with `vectors`, float16 [n, D]."""
    width = vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), pa.float16())
    return pa.record_batch(
        [
            pa.array(rows, pa.int64()),
            pa.array(patches, pa.int32()),
            pa.array(sampled, pa.bool_()),
            pa.FixedSizeListArray.from_arrays(flat, width),
        ],
        schema=schema(width),
    )


@dataclass(frozen=True)
class FeatureSample:
    """Read access by position: `read(start, stop)` -> float16 [stop - start, D], canonical order."""

    folder: Path

    def __post_init__(self) -> None:
        if not self._chunks:
            raise StoreInvalid(f"{self.folder}: the feature sample is empty; no patch of a readable image was sampled")

    @cached_property
    def _table(self) -> pa.Table:
        tables = [read_part(path) for path in part_paths(self.folder, PART)]
        return pa.concat_tables(tables) if tables else schema(1).empty_table()

    @cached_property
    def _chunks(self) -> list[np.ndarray]:
        """float16 [n_i, D] views of the memory-mapped parts."""
        width = self.width
        return [
            chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, width)
            for chunk in self._table["vector"].chunks
            if len(chunk)
        ]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(chunk) for chunk in self._chunks])

    @cached_property
    def _order(self) -> np.ndarray:
        """Position in canonical order -> position in the parts."""
        sampled = np.flatnonzero(self._table["sampled"].to_numpy())
        row, patch = self._table["row"].to_numpy()[sampled], self._table["patch"].to_numpy()[sampled]
        return sampled[np.lexsort((patch, row))]

    @property
    def width(self) -> int:
        return self._table.schema.field("vector").type.list_size

    def __len__(self) -> int:
        return len(self._order)

    @property
    def rows(self) -> np.ndarray:
        """Image row of each vector, ascending."""
        return self._table["row"].to_numpy()[self._order]

    @property
    def patches(self) -> np.ndarray:
        return self._table["patch"].to_numpy()[self._order]

    def read(self, start: int, stop: int) -> np.ndarray:
        positions = self._order[start:stop]
        order = np.argsort(positions, kind="stable")
        positions = positions[order]
        owners = np.searchsorted(self._ends, positions, side="right")
        out = np.empty((len(positions), self.width), np.float16)
        for piece in np.split(np.arange(len(positions)), np.flatnonzero(np.diff(owners)) + 1):
            if len(piece):
                chunk = self._chunks[owners[piece[0]]]
                first = self._ends[owners[piece[0]]] - len(chunk)
                out[order[piece]] = chunk[positions[piece] - first]
        return out
