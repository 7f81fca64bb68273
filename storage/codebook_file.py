"""The codebook on disk: centroids, the size of each cluster, and how k-means got there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import StoreInvalid
from storage.files import replace_file, write_whole


@dataclass(frozen=True)
class Codebook:
    """`centroids` float32 [K, D]; `sizes` int64 [K], vectors of the sample per centroid; `history` per iteration."""

    centroids: np.ndarray
    sizes: np.ndarray
    history: Sequence[Mapping[str, Any]]

    @property
    def vocabulary(self) -> int:
        return len(self.centroids)


def write_codebook(folder: Path, codebook: Codebook) -> None:
    for name, array in (("centroids", codebook.centroids), ("sizes", codebook.sizes)):
        with replace_file(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
    write_whole(folder / "history.json", (json.dumps(list(codebook.history), indent=1) + "\n").encode())


def read_codebook(folder: Path) -> Codebook:
    """Read a codebook. Raises StoreInvalid when its arrays do not fit each other or hold what no k-means makes."""
    centroids = np.load(folder / "centroids.npy", allow_pickle=False)
    sizes = np.load(folder / "sizes.npy", allow_pickle=False)
    history = json.loads((folder / "history.json").read_text())
    if centroids.ndim != 2 or centroids.dtype != np.float32 or sizes.shape != centroids.shape[:1]:
        raise StoreInvalid(
            f"{folder}: expected float32 centroids [K, D] and sizes [K], found {centroids.dtype} {centroids.shape} and "
            f"{sizes.shape}"
        )
    if not np.isfinite(centroids).all():
        raise StoreInvalid(f"{folder / 'centroids.npy'}: a centroid is not finite; fit the codebook again")
    return Codebook(centroids, sizes, history)
