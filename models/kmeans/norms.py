"""The squared norms of the vectors, and what k-means cannot cluster."""

import numpy as np
import torch
from jaxtyping import Float64

from models.errors import ModelError
from models.kmeans.card_rows import tiles_on
from models.kmeans.rows import FeatureRows

# Centroids are means of rows, so no squared distance exceeds four times the largest squared norm: room in float32.
MAX_SQUARED_NORM = 1e37


def squared_norms(features: FeatureRows, *, block_rows: int, device: torch.device) -> Float64[np.ndarray, " n"]:
    """Compute |x|^2 of every row, in one pass that also refuses what k-means cannot cluster.

    Raises ModelError, naming the row, for values that are not finite or too large for a float32 distance (FAISS would
    answer with centroid -1, or end the process), and when all rows are equal.
    """
    norms = torch.empty(len(features), dtype=torch.float64, device=device)
    first_row: torch.Tensor | None = None
    varies = torch.zeros((), dtype=torch.bool, device=device)
    for start, tile in tiles_on(features, block_rows=block_rows, device=device):
        norms[start : start + len(tile)] = tile.double().square().sum(dim=1)
        first_row = tile[:1].clone() if first_row is None else first_row
        if device.type == "cuda" or not varies:  # asking a GPU would wait for it
            varies = varies | (tile != first_row).any()
    found: Float64[np.ndarray, " n"] = norms.cpu().numpy()
    _check_norms(found)
    if not varies:
        raise ModelError(
            f"all {len(features)} feature rows are equal: there is nothing to cluster; "
            "check the images and the encoder that made the features"
        )
    return found


def _check_norms(norms: Float64[np.ndarray, " n"]) -> None:
    # The square of a float32 never overflows float64, so only NaN and infinity make a norm that is not finite.
    is_bad = ~(norms < MAX_SQUARED_NORM)
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        raise ModelError(
            f"feature row {row} has squared norm {norms[row]:.3g}, expected a finite one below "
            f"{MAX_SQUARED_NORM:.1g}: it holds NaN, infinity or huge values; extract the features again"
        )
