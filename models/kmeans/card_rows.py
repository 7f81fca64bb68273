"""The vectors on a GPU: all of them kept there where they fit, as stored; else read ahead into pinned memory.

The host runs ahead of the card: it reads the next block while the card computes on this one, and waits for the card
once a block, so that no more than a few blocks are pinned.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from models.kmeans.rows import (
    TILE_ROWS,
    FeatureRows,
    SelectedRows,
    block_borders,
    read_rows,
    read_tiles,
    tile_borders,
)

_BLOCKS_AHEAD = 2
# Of sums, centroids and tiles in float64, with what additions in one order sort: numbers of eight bytes, at their most.
_COPIES_IN_USE = 6


@dataclass(frozen=True)
class CardRows:
    """A store of vectors whose rows are on a device."""

    values: Float[Tensor, "n D"]

    @property
    def width(self) -> int:
        """D, the length of a row."""
        return self.values.shape[1]

    def __len__(self) -> int:
        return len(self.values)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read rows start..stop-1 to the host."""
        return self.values[start:stop].cpu().numpy()

    def tiles(self, rows: Int64[np.ndarray, " n"] | None) -> Iterator[tuple[int, Float32[Tensor, "rows D"]]]:
        """Yield tiles of all rows or of some, as `read_tiles` does; nothing is copied to the device but which."""
        chosen = None if rows is None else torch.from_numpy(rows).to(self.values.device)
        for start, stop in pairwise(tile_borders(len(self) if rows is None else len(rows))):
            tile = self.values[start:stop] if chosen is None else self.values[chosen[start:stop]]
            yield start, tile.float()


def on_card(features: FeatureRows, *, vocabulary: int, block_rows: int, device: torch.device) -> FeatureRows:
    """Return the rows as they are best read: on the GPU if they fit there beside what k-means needs, else as they
    are."""
    dtype = _dtype_of(read_rows(features, 0, 1))
    in_use = 8 * _COPIES_IN_USE * (vocabulary + 2 * TILE_ROWS) * features.width
    if len(features) * features.width * dtype.itemsize + in_use > torch.cuda.mem_get_info(device)[0]:
        return features
    values = torch.empty((len(features), features.width), dtype=dtype, device=device)
    for borders, block in _blocks_ahead(features, block_rows, device):
        values[borders[0] : borders[-1]].copy_(block, non_blocking=True)
    return CardRows(values)


def tiles_on(
    features: FeatureRows, *, block_rows: int, device: torch.device
) -> Iterator[tuple[int, Float32[Tensor, "rows D"]]]:
    """Yield what `read_tiles` does, from where the rows are."""
    if isinstance(features, CardRows):
        yield from features.tiles(None)
    elif isinstance(features, SelectedRows) and isinstance(features.features, CardRows):
        yield from features.features.tiles(features.rows)
    elif device.type == "cuda":
        for borders, block in _blocks_ahead(features, block_rows, device):
            for start, stop in pairwise(borders):
                tile = block[start - borders[0] : stop - borders[0]]
                yield start, tile.to(device, non_blocking=True).float()
    else:
        yield from read_tiles(features, block_rows=block_rows, device=device)


def _blocks_ahead(
    features: FeatureRows, block_rows: int, device: torch.device
) -> Iterator[tuple[list[int], Float[Tensor, "rows D"]]]:
    """Yield borders of tiles and the pinned rows between them, while a thread reads the next ones."""

    def pinned(borders: list[int]) -> Float[Tensor, "rows D"]:
        read = read_rows(features, borders[0], borders[-1])
        rows = torch.empty(read.shape, dtype=_dtype_of(read), pin_memory=True)
        np.copyto(rows.numpy(), read)
        return rows

    blocks = list(block_borders(len(features), block_rows))
    used: deque[torch.cuda.Event] = deque()  # by blocks whose copies the card has yet to make
    with ThreadPoolExecutor(1, thread_name_prefix="read ahead") as reader:
        coming = reader.submit(pinned, blocks[0])
        for number, borders in enumerate(blocks):
            block = coming.result()
            if number + 1 < len(blocks):
                coming = reader.submit(pinned, blocks[number + 1])
            yield borders, block
            used.append(torch.cuda.current_stream(device).record_event())
            if len(used) > _BLOCKS_AHEAD:
                used.popleft().synchronize()


def _dtype_of(rows: np.ndarray) -> torch.dtype:
    return torch.float16 if rows.dtype == np.float16 else torch.float32
