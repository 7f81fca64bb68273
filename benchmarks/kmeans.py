"""Our k-means against `faiss.Kmeans`: time, memory and the inertia that it reaches, from the same file of float16 rows.

Each fit runs in a process of its own. FAISS gets what it needs, a float32 copy of all rows, and both cluster all rows.
They draw their first centroids differently, so their inertias agree to a percent or so, not to the last digit. One
thread each: on a busy machine threads that wait for each other burn CPU time, which would be counted as work.
(With two threads on two busy cores ours took 2 to 3.5 times FAISS's CPU time, 1.2 to 1.4 with OMP_WAIT_POLICY=passive.)
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.measure import Measurement, anonymous_bytes, in_own_process, median_ratio
from benchmarks.pictures import samples

BLOCK = 4096
GROWING_ITERATIONS = 20  # of FAISS, whose inertia is to be reached


@dataclass(frozen=True)
class Problem:
    """`rows` is a .npy file, float16 [n, D]."""

    rows: Path
    vocabulary: int
    iterations: int
    seed: int
    mode: Literal["lloyd", "growing"] = "lloyd"

    @property
    def centroids(self) -> Path:
        """Where a fit leaves its centroids, float32 [K, D]."""
        return self.rows.with_name("centroids.npy")


@dataclass(frozen=True)
class Fit:
    """What one fit took and reached.

    Attributes:
        memory: bytes of anonymous memory at the peak beyond those before the fit.
        visits: how often every row was assigned, parts of the rows counted as parts.
    """

    wall: float
    cpu: float
    memory: float
    inertia: float
    visits: float


@dataclass(frozen=True)
class Rows:
    """A memory-mapped file as `models.kmeans.rows.FeatureRows`."""

    array: np.ndarray

    @property
    def width(self) -> int:
        return self.array.shape[1]

    def __len__(self) -> int:
        return len(self.array)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.array[start:stop]


def run(
    rows: int = 200_000,
    width: int = 256,
    vocabulary: int = 512,
    iterations: int = 5,
    rounds: int = 2,
    patches: Sequence[tuple[int, int, int]] = ((80_000, 16, 128), (160_000, 8, 1024)),
) -> list[Measurement]:
    """Measure ours against FAISS's k-means, each round with a seed of its own.

    Args:
        patches: problems for mode `growing`: how many, pixels of a side, centroids.
    """
    ours, faiss = [], []
    with tempfile.TemporaryDirectory(prefix="mapet-kmeans-") as folder:
        path = Path(folder, "rows.npy")
        np.save(path, clustered_rows(rows, width))
        for seed in range(rounds):
            problem = Problem(path, vocabulary, iterations, seed)
            ours.append(_fit(fit_with_ours, problem))
            faiss.append(_fit(fit_with_faiss, problem))
    size = f"{rows:,} x {width}, K={vocabulary}, {iterations} iterations"
    return [
        _compared("kmeans.wall", f"s, {size}", ours, faiss, lambda fit: fit.wall),
        _compared("kmeans.cpu", "CPU-seconds", ours, faiss, lambda fit: fit.cpu),
        _compared("kmeans.memory", "MB, peak anonymous", ours, faiss, lambda fit: fit.memory / 1e6),
        _compared("kmeans.inertia", "squared distance, float64", ours, faiss, lambda fit: fit.inertia),
        *(item for problem in patches for item in growing(*problem)),
    ]


def growing(
    rows: int, side: int, vocabulary: int, iterations: int = GROWING_ITERATIONS, rounds: int = 3
) -> list[Measurement]:
    """Measure mode `growing` against the iterations of FAISS's k-means on raw patches of photographs."""
    ours, faiss = [], []
    with tempfile.TemporaryDirectory(prefix="mapet-kmeans-") as folder:
        path = Path(folder, "rows.npy")
        np.save(path, raw_patches(rows, side))
        for seed in range(rounds):
            problem = Problem(path, vocabulary, iterations, seed, "growing")
            ours.append(_fit(fit_with_ours, problem))
            faiss.append(_fit(fit_with_faiss, problem))
    name, size = f"kmeans.growing{vocabulary}", f"{rows:,} raw patches of {side} px, K={vocabulary}"
    return [
        _compared(f"{name}.visits", f"times all rows were assigned, {size}", ours, faiss, lambda fit: fit.visits),
        _compared(f"{name}.wall", f"s, at most {iterations} iterations", ours, faiss, lambda fit: fit.wall),
        _compared(f"{name}.cpu", "CPU-seconds", ours, faiss, lambda fit: fit.cpu),
        _compared(f"{name}.inertia", "squared distance, float64", ours, faiss, lambda fit: fit.inertia),
    ]


def _compared(name: str, unit: str, ours: list[Fit], faiss: list[Fit], value: Callable[[Fit], float]) -> Measurement:
    mine, theirs = [value(fit) for fit in ours], [value(fit) for fit in faiss]
    against = f"faiss.Kmeans: {statistics.median(theirs):.4g}"
    return Measurement(name, statistics.median(mine), unit, against, median_ratio(mine, theirs))


def _fit(method: Callable[[Problem], tuple[float, float, int, float]], problem: Problem) -> Fit:
    measured = in_own_process(method, problem)
    wall, cpu, before, visits = measured.result
    return Fit(wall, cpu, measured.peak_anonymous - before, inertia(problem), visits)


def fit_with_ours(problem: Problem) -> tuple[float, float, int, float]:
    """Fit; return the wall and CPU seconds that took, the anonymous memory before, and how often rows were assigned."""
    import faiss
    import torch

    from models.kmeans.clustering import fit_kmeans
    from models.kmeans.options import CodebookOptions
    from pipeline.stages.fit_codebook import distances_of

    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    rows = Rows(np.load(problem.rows, mmap_mode="r"))
    options = CodebookOptions(
        vocabulary=problem.vocabulary, iterations=problem.iterations, seed=problem.seed, mode=problem.mode
    )
    before, wall, cpu = anonymous_bytes(), time.perf_counter(), time.process_time()
    result = fit_kmeans(rows, options)
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    np.save(problem.centroids, result.centroids)
    numbers = [record.iteration for record in result.history]
    visited = distances_of(options, vectors=len(rows), iterations=numbers) / problem.vocabulary / len(rows)
    return *seconds, before, visited + 1  # the last assignment, of which sizes and inertia are told


def fit_with_faiss(problem: Problem) -> tuple[float, float, int, float]:
    """Fit as `fit_with_ours` does, with faiss.Kmeans; the copy to float32 is part of the fit."""
    import faiss

    faiss.omp_set_num_threads(1)
    rows = np.load(problem.rows, mmap_mode="r")
    kmeans = faiss.Kmeans(
        rows.shape[1],
        problem.vocabulary,
        niter=problem.iterations,
        seed=problem.seed + 1,
        max_points_per_centroid=len(rows),
        min_points_per_centroid=1,
    )
    before, wall, cpu = anonymous_bytes(), time.perf_counter(), time.process_time()
    kmeans.train(rows.astype(np.float32))
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    np.save(problem.centroids, kmeans.centroids)
    return *seconds, before, problem.iterations


def inertia(problem: Problem) -> float:
    """Sum the squared distances of all rows to their nearest centroids, in float64."""
    rows = np.load(problem.rows, mmap_mode="r")
    centroids = np.load(problem.centroids).astype(np.float64)
    half_norms = (centroids**2).sum(1) / 2
    total = 0.0
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK].astype(np.float64)
        nearest = (block @ centroids.T - half_norms).argmax(1)
        total += float(((block - centroids[nearest]) ** 2).sum())
    return total


def raw_patches(count: int, side: int) -> np.ndarray:
    """Cut patches from anywhere in photographs: float16 [count, 3 side^2] in [-1, 1], as `RawPatchEncoder` has them."""
    rng, pictures = np.random.default_rng(0), samples()
    made = np.empty((count, side, side, 3), np.float16)
    for patch in made:
        picture = pictures[rng.integers(len(pictures))]
        top, left = (rng.integers(edge - side + 1) for edge in picture.shape[:2])
        patch[:] = picture[top : top + side, left : left + side] / 127.5 - 1
    return made.reshape(count, -1)


def clustered_rows(rows: int, width: int, groups: int = 2_000) -> np.ndarray:
    """Draw float16 [rows, width], never negative as after a ReLU, around centres of Zipf-like frequency."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((groups, width), dtype=np.float32)
    weights = 1 / (np.arange(groups) + 10)
    owner = rng.choice(groups, rows, p=weights / weights.sum())
    made = np.empty((rows, width), np.float16)
    for start in range(0, rows, BLOCK):
        part = owner[start : start + BLOCK]
        made[start : start + BLOCK] = np.maximum(
            centres[part] + 0.5 * rng.standard_normal((len(part), width), dtype=np.float32), 0
        )
    return made
