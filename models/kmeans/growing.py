"""Mode `growing`: on which vectors an iteration works, how far it moves the centroids, and when it was the last.

It begins on 1/16 of the vectors, then on 1/8, 1/4 and 1/2: each with as many iterations as it takes to look at n
vectors once, so that these four cost four iterations of all n. A part that has too few vectors for its centroids is
left out: it would be learned by heart.

A centroid c goes beyond the mean m of its vectors, to c + s (m - c). With the vectors where they are the sum of squared
distances grows by N |c' - m|^2 = N (s - 1)^2 |c - m|^2 over its least, so any s below 2 lowers it, as s = 1 does; near
the end, where each iteration moves a centroid on in the direction of the one before, the longer step saves iterations.
The last one goes to the mean.

Bottou, Bengio, "Convergence Properties of the K-Means Algorithms", NIPS 1994 (samples); Xu, Jordan, "On Convergence
Properties of the EM Algorithm for Gaussian Mixtures", Neural Computation, 1996 (longer steps).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from models.kmeans.statistics import KMeansIteration

STRETCH = 1.8
LEAST_GAIN = 2e-3
"""Of the inertia, by an iteration on all vectors: one that gains less is the last."""

_PARTS = (16, 8, 4, 2)
_LEAST_ROWS = 32  # of a part, for each centroid
_RUN = 16  # vectors that are drawn together, as they are read


def parts_of(rows: int, vocabulary: int) -> tuple[int, ...]:
    """Return for each iteration before those on all rows that it works on one row in so many."""
    return tuple(part for part in _PARTS if rows // part >= _LEAST_ROWS * vocabulary for _ in range(part))


def draw_parts(rows: int, vocabulary: int, rng: np.random.Generator) -> dict[int, Int64[np.ndarray, " n"]]:
    """Draw which rows the parts are, sorted; each part holds those before it."""
    order = rng.permutation(-(-rows // _RUN))
    return {part: _rows_of(order[: -(-len(order) // part)], rows) for part in dict.fromkeys(parts_of(rows, vocabulary))}


def _rows_of(runs: Int64[np.ndarray, " runs"], rows: int) -> Int64[np.ndarray, " n"]:
    found = (np.sort(runs)[:, None] * _RUN + np.arange(_RUN)).reshape(-1)
    return found[found < rows]


def rows_visited(rows: int, vocabulary: int, iteration: int) -> int:
    """Return about how many rows an iteration assigns, by its number in its restart."""
    parts = parts_of(rows, vocabulary)
    return rows // parts[iteration] if iteration < len(parts) else rows


def gains_little(inertia: float, whole: Sequence[KMeansIteration]) -> bool:
    """Tell whether an iteration on all rows is the last, by the inertia it begins with and those before it."""
    return bool(whole) and whole[-1].inertia - inertia < LEAST_GAIN * whole[-1].inertia
