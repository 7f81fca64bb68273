"""What the sizes of the clusters say about a codebook, and the record of one k-means iteration.

With p_k the share of the vectors that fall on centroid k, the perplexity is exp(-sum_k p_k ln p_k): the number of
equally used centroids that would carry the same information. Inertia alone does not judge a codebook: k-means++
lowers it by spending centroids on outliers, which the perplexity shows.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from jaxtyping import Float64, Int64

from models.errors import ModelError


@dataclass(frozen=True)
class KMeansIteration:
    """One Lloyd iteration: the assignment to the centroids it started from, then what its update did to them.

    `inertia` is the sum of squared distances, the shares and `perplexity` are of the same assignment;
    `centroid_shift` is the root mean square distance between old and new centroids, after `splits` empty clusters
    took half of another one. NaN marks what the mode does not measure (`reference`: FAISS reports inertia and splits).
    """

    restart: int
    iteration: int
    inertia: float
    used_share: float
    perplexity: float
    largest_share: float
    centroid_shift: float
    splits: int

    @property
    def is_fixed_point(self) -> bool:
        """Whether every later iteration of the same restart would repeat this one."""
        return self.centroid_shift == 0.0 and self.splits == 0


def history_to_array(history: Sequence[KMeansIteration]) -> Float64[np.ndarray, "iterations 8"]:
    """Make a row of each iteration, in the order of `KMeansIteration`'s fields; float64 holds the counts exactly."""
    return np.array([astuple(record) for record in history], dtype=np.float64).reshape(len(history), 8)


def history_from_array(rows: Float64[np.ndarray, "iterations 8"]) -> tuple[KMeansIteration, ...]:
    """Rebuild a history from what `history_to_array` gave."""
    return tuple(
        KMeansIteration(int(restart), int(iteration), inertia, used, perplexity, largest, shift, int(splits))
        for restart, iteration, inertia, used, perplexity, largest, shift, splits in rows.tolist()
    )


@dataclass(frozen=True)
class CodebookStatistics:
    """How evenly vectors use a codebook: shares in [0, 1], `perplexity` in [1, K], percentiles of the sizes."""

    used_share: float
    perplexity: float
    largest_share: float
    p1: float
    p50: float
    p99: float


def codebook_statistics(sizes: Int64[np.ndarray, " K"]) -> CodebookStatistics:
    """Measure how evenly the clusters are filled, by their sizes (vectors per centroid).

    Raises:
        ModelError: no vector was counted.
    """
    total = int(sizes.sum())
    if total == 0:
        raise ModelError(f"the {len(sizes)} cluster sizes are all 0: expected the counts of an assignment")
    shares = sizes[sizes > 0] / total
    p1, p50, p99 = np.percentile(sizes, (1, 50, 99))
    return CodebookStatistics(
        used_share=len(shares) / len(sizes),
        perplexity=float(np.exp(-(shares * np.log(shares)).sum())),
        largest_share=float(shares.max()),
        p1=float(p1),
        p50=float(p50),
        p99=float(p99),
    )


def histogram_of_sizes(
    sizes: Int64[np.ndarray, " K"],
) -> tuple[Int64[np.ndarray, " edges"], Int64[np.ndarray, " bins"]]:
    """Count centroids by size in bins that double: edges 0, 1, 2, 4, ...; bin i is edges[i] <= size < edges[i + 1].

    The first bin is the unused centroids, and the counts add up to K.
    """
    # bit_length gives 0 -> 0, 1 -> 1, 2..3 -> 2, 4..7 -> 3: the number of the bin, without rounding of logarithms.
    bins = np.array([int(size).bit_length() for size in sizes], dtype=np.int64)
    counts = np.bincount(bins)
    edges = np.concatenate(([0], 2 ** np.arange(len(counts), dtype=np.int64)))
    return edges, counts
