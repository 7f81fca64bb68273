"""Where k-means on a GPU has its vectors: on the card if they fit, else read ahead; it waits at the end of a pass."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.kmeans.card_rows import CardRows, on_card
from models.kmeans.lloyd import Assigner
from models.kmeans.rows import tile_borders
from tests.null_gpu.gpus import needs_cuda_build, with_gpus

ROWS, BLOCK_ROWS = 800_000, 65_536  # 100 MB


class Counted:
    """Equal vectors, which are counted when they are read."""

    width = 64

    def __init__(self) -> None:
        self.read_rows = 0

    def __len__(self) -> int:
        return ROWS

    def read(self, start: int, stop: int) -> np.ndarray:
        self.read_rows += stop - start
        return np.ones((stop - start, self.width), np.float16)


class Nothing:
    """A search on a GPU that computes nothing."""

    device = torch.device("cuda", 0)

    def set_centroids(self, centroids: torch.Tensor) -> None:
        """Search for nothing."""

    def nearest(self, tile: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(tile), dtype=torch.int64, device=self.device)


def two_passes() -> dict[str, Any]:
    null, store, search = ctypes.CDLL(None), Counted(), Nothing()
    features = on_card(store, vocabulary=4, block_rows=BLOCK_ROWS, device=search.device)
    before = null.null_syncs()
    for _ in range(2):
        Assigner(search, features, 0.0, BLOCK_ROWS).assign(np.ones((4, 64), np.float32))
    waits = null.null_syncs() - before
    return {"on card": isinstance(features, CardRows), "read": store.read_rows // ROWS, "waits": waits}


@needs_cuda_build
def test_vectors_that_fit_are_read_once_and_others_ahead_without_a_wait_per_tile(folder: Path) -> None:
    tiles = 2 * (len(tile_borders(ROWS)) - 1)
    fitting, _ = with_gpus(two_passes, gpus=1, gib=1.0, folder=folder)
    assert (fitting["on card"], fitting["read"]) == (True, 1)
    assert fitting["waits"] < tiles / 4
    streamed, _ = with_gpus(two_passes, gpus=1, gib=0.1, folder=folder)
    assert (streamed["on card"], streamed["read"]) == (False, 2)
    assert streamed["waits"] < tiles / 4
