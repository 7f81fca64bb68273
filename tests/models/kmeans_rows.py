"""Rows to cluster, and what clusterings are compared with."""

from dataclasses import dataclass

import numpy as np

from models.kmeans.clustering import KMeansResult


@dataclass
class Rows:
    """An array as a store, which remembers the largest block that was asked for."""

    values: np.ndarray
    largest_block: int = 0

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def __len__(self) -> int:
        return len(self.values)

    def read(self, start: int, stop: int) -> np.ndarray:
        self.largest_block = max(self.largest_block, stop - start)
        return self.values[start:stop]


def draw_rows(count: int, width: int = 16, *, groups: int = 40, seed: int = 0) -> np.ndarray:
    """Return clouds around `groups` centres, in float16 as the features are stored."""
    rng = np.random.default_rng(seed)
    centres = 4 * rng.normal(size=(groups, width))
    return (centres[rng.integers(groups, size=count)] + rng.normal(size=(count, width))).astype(np.float16)


def nearest_distances(values: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and squared distances in float64, without FAISS, by direct differences."""
    differences = values.astype(np.float64)[:, None] - centroids.astype(np.float64)
    squared = np.square(differences).sum(axis=2)
    return squared.argmin(axis=1), squared.min(axis=1)


def assert_same_bits(result: KMeansResult, expected: KMeansResult) -> None:
    assert result.centroids.tobytes() == expected.centroids.tobytes()
    assert result.sizes.tolist() == expected.sizes.tolist()
    assert result.inertia == expected.inertia
    assert result.history == expected.history
    assert result.best_restart == expected.best_restart
