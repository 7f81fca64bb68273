"""Reading the vectors that k-means clusters: by tiles whose borders depend on the number of rows and on nothing else.

Floating-point sums and the kernels of a matrix product depend on how rows are grouped. Everything k-means computes is
therefore computed tile by tile, in row order; the block size only says how many tiles are read at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from models.errors import ModelError

TILE_ROWS = 4096

MAX_READ_GAP = 32  # unwanted rows between two wanted ones that are cheaper to read than to skip


@runtime_checkable
class FeatureRows(Protocol):
    """Any store of vectors that is read by blocks."""

    @property
    def width(self) -> int:
        """D, the length of a row."""
        ...

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read rows start..stop-1 as float16 or float32 [stop - start, D]."""
        ...


@dataclass(frozen=True)
class SelectedRows:
    """Some rows of a store, as a store: nothing is copied but the block that is read."""

    features: FeatureRows
    rows: Int64[np.ndarray, " n"]
    """Sorted, without duplicates."""
    block_rows: int

    @property
    def width(self) -> int:
        """D, the length of a row."""
        return self.features.width

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read rows start..stop-1 of the selection, gathered from runs of neighbouring rows of the store."""
        rows = self.rows[start:stop]
        is_cut = (np.diff(rows) > MAX_READ_GAP) | (np.diff(rows // self.block_rows) > 0)
        runs = np.split(rows, np.flatnonzero(is_cut) + 1)
        parts = [read_rows(self.features, int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in runs]
        return np.concatenate(parts)


def read_rows(features: FeatureRows, start: int, stop: int) -> np.ndarray:
    """Call `features.read` and hold it to its contract: ModelError for another dtype or shape."""
    block = features.read(start, stop)
    if block.dtype not in (np.float16, np.float32):
        raise ModelError(f"feature rows {start}..{stop - 1} are {block.dtype}; k-means takes float16 or float32")
    if block.shape != (stop - start, features.width):
        raise ModelError(
            f"feature rows {start}..{stop - 1} came as {list(block.shape)}, "
            f"expected {[stop - start, features.width]}: the store does not hold what it declares"
        )
    return block


def tile_borders(rows: int) -> list[int]:
    """Return 0, 4096, 8192, ..., rows. A rest joins the last tile: FAISS computes small batches by other kernels."""
    return [*range(0, max(rows - TILE_ROWS, 0) + 1, TILE_ROWS), rows]


def block_borders(rows: int, block_rows: int) -> Iterator[list[int]]:
    """Yield the borders of the tiles of each block of about `block_rows` rows, both ends of the block among them."""
    borders = tile_borders(rows)
    tiles_per_block = max(block_rows // TILE_ROWS, 1)
    for first in range(0, len(borders) - 1, tiles_per_block):
        yield borders[first : first + tiles_per_block + 1]


def read_tiles(
    features: FeatureRows, *, block_rows: int, device: torch.device
) -> Iterator[tuple[int, Float32[Tensor, "rows D"]]]:
    """Yield (first row, the tile in float32 on the device), in order, reading about `block_rows` rows at a time."""
    for borders in block_borders(len(features), block_rows):
        block = read_rows(features, borders[0], borders[-1])
        for start, stop in pairwise(borders):
            yield start, _to_device(block[start - borders[0] : stop - borders[0]], device)


def _to_device(rows: Float[np.ndarray, "rows D"], device: torch.device) -> Float32[Tensor, "rows D"]:
    # torch refuses to promise not to write into a read-only memory map; the copy is one tile in the stored precision.
    writable = rows if rows.flags.writeable and rows.flags.c_contiguous else np.array(rows, order="C")
    # Two steps: the bus carries the stored precision, the device widens it.
    return torch.from_numpy(writable).to(device).float()
