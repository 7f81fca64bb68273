"""What k-means returns, and what a killed run needs to go on with the same bits."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64

from models.errors import ModelError
from models.kmeans.options import CodebookOptions
from models.kmeans.statistics import KMeansIteration, history_from_array, history_to_array


@dataclass(frozen=True)
class KMeansResult:
    """A finished codebook.

    `sizes` and `inertia` (a float64 sum of squared distances) come from a last assignment of every feature row, also
    those that `max_points_per_centroid` kept out of the clustering, to these very centroids.
    """

    centroids: Float32[np.ndarray, "K D"]
    history: tuple[KMeansIteration, ...]
    sizes: Int64[np.ndarray, " K"]
    inertia: float
    best_restart: int = 0


@dataclass(frozen=True)
class BestRestart:
    """The finished restart of lowest inertia so far."""

    restart: int
    centroids: Float32[np.ndarray, "K D"]
    sizes: Int64[np.ndarray, " K"]
    inertia: float


@dataclass(frozen=True)
class KMeansState:
    """Between two iterations: `iteration` of them are done in `restart`, and led to `centroids`."""

    restart: int
    iteration: int
    centroids: Float[np.ndarray, "K D"]  # float32; whatever a file brings, `check` tells the user
    history: tuple[KMeansIteration, ...] = ()
    best: BestRestart | None = None

    @property
    def has_converged(self) -> bool:
        """Whether the iterations left in this restart would change nothing."""
        return self.iteration > 0 and self.history[-1].is_fixed_point

    @property
    def history_of_restart(self) -> tuple[KMeansIteration, ...]:
        """The iterations that led from this restart's first centroids to these."""
        return self.history[len(self.history) - self.iteration :]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return plain arrays for an .npz that is read with allow_pickle=False."""
        arrays = {
            "progress": np.array([self.restart, self.iteration], dtype=np.int64),
            "centroids": self.centroids,
            "history": history_to_array(self.history),
        }
        if self.best is not None:
            arrays |= {
                "best_restart": np.array(self.best.restart, dtype=np.int64),
                "best_centroids": self.best.centroids,
                "best_sizes": self.best.sizes,
                "best_inertia": np.array(self.best.inertia, dtype=np.float64),
            }
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "KMeansState":
        """Rebuild a state from what `to_arrays` gave; raises ModelError when an array is missing."""
        try:
            restart, iteration = map(int, arrays["progress"])
            history = history_from_array(arrays["history"])
            return cls(restart, iteration, arrays["centroids"], history, _best_from_arrays(arrays))
        except KeyError as error:
            raise ModelError(
                f"the saved k-means state holds only {sorted(arrays)} ({error.args[0]}): delete it to start over"
            ) from error

    def check(self, options: CodebookOptions, *, width: int, iterations: int) -> None:
        """Raise ModelError unless a run with these options, on rows of this width, can go on from here; `iterations`:
        at most so many has a restart."""
        expected = (options.vocabulary, width)
        if self.centroids.shape != expected or self.centroids.dtype != np.float32:
            raise ModelError(
                f"the k-means state to resume holds {self.centroids.dtype} centroids {list(self.centroids.shape)}, "
                f"expected float32 {list(expected)}: it is of another run; delete it to start over"
            )
        if not np.isfinite(self.centroids).all():
            raise ModelError("the k-means state to resume holds centroids that are not finite: delete it to start over")
        if self.restart >= options.redo or self.iteration > iterations:
            raise ModelError(
                f"the k-means state to resume is at restart {self.restart}, iteration {self.iteration}, beyond "
                f"redo={options.redo}, iterations={iterations}: delete it to start over"
            )


def _best_from_arrays(arrays: Mapping[str, np.ndarray]) -> BestRestart | None:
    if "best_restart" not in arrays:
        return None
    return BestRestart(
        restart=int(arrays["best_restart"]),
        centroids=arrays["best_centroids"],
        sizes=arrays["best_sizes"],
        inertia=float(arrays["best_inertia"]),
    )
