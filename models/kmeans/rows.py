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
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from models.errors import ModelError

TILE_ROWS = 4096

# Centroids are means of rows, so no squared distance exceeds four times the largest squared norm: room in float32.
MAX_SQUARED_NORM = 1e37

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


def read_tiles(
    features: FeatureRows, *, block_rows: int, device: torch.device
) -> Iterator[tuple[int, Float32[Tensor, "rows D"]]]:
    """Yield (first row, the tile in float32 on the device), in order, reading about `block_rows` rows at a time."""
    borders = tile_borders(len(features))
    tiles_per_block = max(block_rows // TILE_ROWS, 1)
    for first in range(0, len(borders) - 1, tiles_per_block):
        block_borders = borders[first : first + tiles_per_block + 1]
        block = read_rows(features, block_borders[0], block_borders[-1])
        for start, stop in pairwise(block_borders):
            yield start, _to_device(block[start - block_borders[0] : stop - block_borders[0]], device)


def _to_device(rows: Float[np.ndarray, "rows D"], device: torch.device) -> Float32[Tensor, "rows D"]:
    # torch refuses to promise not to write into a read-only memory map; the copy is one tile in the stored precision.
    writable = rows if rows.flags.writeable and rows.flags.c_contiguous else np.array(rows, order="C")
    # Two steps: the bus carries the stored precision, the device widens it.
    return torch.from_numpy(writable).to(device).float()


def squared_norms(features: FeatureRows, *, block_rows: int, device: torch.device) -> Float64[np.ndarray, " n"]:
    """Compute |x|^2 of every row, in one pass that also refuses what k-means cannot cluster.

    Raises ModelError, naming the row, for values that are not finite or too large for a float32 distance (FAISS would
    answer with centroid -1, or end the process), and when all rows are equal.
    """
    norms = np.empty(len(features), dtype=np.float64)
    first_row: Tensor | None = None
    varies = False
    for start, tile in read_tiles(features, block_rows=block_rows, device=device):
        tile_norms = tile.double().square().sum(dim=1).cpu().numpy()
        _check_norms(tile_norms, start)
        norms[start : start + len(tile)] = tile_norms
        first_row = tile[:1].clone() if first_row is None else first_row
        varies = varies or bool((tile != first_row).any())
    if not varies:
        raise ModelError(
            f"all {len(features)} feature rows are equal: there is nothing to cluster; "
            "check the images and the encoder that made the features"
        )
    return norms


def _check_norms(norms: Float64[np.ndarray, " rows"], start: int) -> None:
    # The square of a float32 never overflows float64, so only NaN and infinity make a norm that is not finite.
    is_bad = ~(norms < MAX_SQUARED_NORM)
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        raise ModelError(
            f"feature row {start + row} has squared norm {norms[row]:.3g}, expected a finite one below "
            f"{MAX_SQUARED_NORM:.1g}: it holds NaN, infinity or huge values; extract the features again"
        )
