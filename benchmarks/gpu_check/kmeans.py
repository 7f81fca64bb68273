"""Step `kmeans`: FAISS's search on the device against float64; the same bits twice, and when it is interrupted."""

import time
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.gpu_check.assignment import Rows, brute_force, heavy_tailed
from benchmarks.gpu_check.checks import Attempt, Check, Setup, passed_if

ITERATIONS = 4


def attempts(setup: Setup) -> Iterator[Attempt]:
    yield "kmeans", lambda: _kmeans(setup)


def _kmeans(setup: Setup) -> Iterator[Check]:
    import faiss

    from models.kmeans.clustering import KMeansState, fit_kmeans
    from models.kmeans.options import CodebookOptions

    if setup.is_cuda and not hasattr(faiss, "StandardGpuResources"):
        yield Check("kmeans", "left out", note="needs faiss-gpu; faiss-cpu is installed")
        return
    vocabulary, width = setup.size(4096, 8), setup.size(1024, 16)
    features, _ = heavy_tailed(rows=setup.size(400_000, 600), vocabulary=vocabulary, width=width, device="cpu")
    rows, options = Rows(features), CodebookOptions(vocabulary=vocabulary, iterations=ITERATIONS)
    states: list[KMeansState] = []
    moments = [time.perf_counter()]

    def kept(state: KMeansState) -> None:
        states.append(state)
        moments.append(time.perf_counter())

    first = fit_kmeans(rows, options, device=setup.device, on_iteration=kept)
    if len(moments) > 2:  # the first one also reads all rows for their norms
        size = f"s an iteration, {len(rows):,} x {width}, K={vocabulary}"
        yield Check("iteration", "measured", (moments[-1] - moments[1]) / (len(moments) - 2), size)
    again = fit_kmeans(rows, options, device=setup.device)
    yield passed_if(first.centroids.tobytes() == again.centroids.tobytes(), "twice the same bits")
    resumed = fit_kmeans(rows, options, device=setup.device, resume=states[0])
    yield passed_if(first.centroids.tobytes() == resumed.centroids.tobytes(), "resumed the same bits")
    yield _exact(rows, first.centroids, first.sizes, setup)


def _exact(rows: Rows, centroids: np.ndarray, sizes: np.ndarray, setup: Setup) -> Check:
    """Compare the sizes of the clusters with those in float64: in FAISS's float32, rows as near to two centroids may be
    at either."""
    table = torch.from_numpy(centroids).to(setup.device)
    nearest = torch.cat([brute_force(part.to(setup.device), table) for part in rows.values.split(100_000)])
    counts = torch.bincount(nearest, minlength=len(table)).cpu().numpy()
    moved = int(np.abs(counts - sizes).sum()) // 2
    return passed_if(moved <= 1e-3 * len(rows), "against float64", value=moved, unit=f"of {len(rows):,} rows elsewhere")
