"""Lloyd's algorithm over rows that are read by tiles, on any exact nearest-centroid search.

    a_i = argmin_k |x_i - c_k|^2        (the search)
    c_k = mean of the x_i with a_i = k  (float64 sums; a cluster that stays empty takes half of another one)

The inertia sum_i |x_i - c_{a_i}|^2 = sum_i |x_i|^2 - 2 sum_k c_k.s_k + sum_k n_k |c_k|^2, with s_k and n_k the sum and
the number of the vectors of cluster k, is evaluated in float64 from what the update needs anyway. FAISS sums its own
objective in float32, which at five million vectors errs by as much as a late iteration gains.

Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory, 1982.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from models.errors import ModelError
from models.kmeans.card_rows import tiles_on
from models.kmeans.growing import STRETCH, draw_parts, gains_little, parts_of
from models.kmeans.options import CodebookOptions
from models.kmeans.rows import FeatureRows, SelectedRows
from models.kmeans.state import BestRestart, KMeansResult, KMeansState
from models.kmeans.statistics import KMeansIteration, codebook_statistics

SPLIT_EPSILON = 1 / 1024  # FAISS's: far below the distance of centroids, far above float32's resolution


@runtime_checkable
class NearestSearch(Protocol):
    """Exact nearest centroid of every row of a tile, on the device of the tensors."""

    device: torch.device

    def set_centroids(self, centroids: Float32[Tensor, "K D"]) -> None:
        """Search among these from now on."""
        ...

    def nearest(self, tile: Float32[Tensor, "rows D"]) -> Int64[Tensor, " rows"]:
        """Return the number of the nearest centroid of each row; -1 where there is none."""
        ...


@dataclass(frozen=True)
class Assignment:
    """Every row at its nearest centroid, summed up: what the update and the statistics need."""

    sums: Float64[Tensor, "K D"]
    sizes: Int64[Tensor, " K"]
    inertia: float


@dataclass(frozen=True)
class Assigner:
    """Rows, the sum of their squared norms, and the search that assigns them to centroids."""

    search: NearestSearch
    features: FeatureRows
    squared_norm: float
    block_rows: int

    def assign(self, centroids: Float32[np.ndarray, "K D"]) -> Assignment:
        """Assign every row to its nearest centroid, in one pass that waits for the device at its end alone.

        Raises ModelError: a row has no nearest centroid.
        """
        device = self.search.device
        table = torch.from_numpy(centroids).to(device)
        self.search.set_centroids(table)
        sums = torch.zeros(table.shape, dtype=torch.float64, device=device)
        sizes = torch.zeros(len(table), dtype=torch.int64, device=device)
        lowest = torch.zeros((), dtype=torch.int64, device=device)
        for _, tile in tiles_on(self.features, block_rows=self.block_rows, device=device):
            found = self.search.nearest(tile)
            lowest, labels = torch.minimum(lowest, found.min()), found.clamp(min=0)
            sizes.index_add_(0, labels, torch.ones_like(labels))
            _add_rows(sums, labels, tile.double())
        if int(lowest) < 0:
            raise ModelError("FAISS found no finite distance from a feature row to any centroid: check the features")
        table = table.double()
        per_cluster = sizes * table.square().sum(dim=1) - 2 * (table * sums).sum(dim=1)
        # NumPy adds the K terms: torch's sum of a whole tensor depends on the number of threads, its row sums do not.
        inertia = self.squared_norm + float(per_cluster.cpu().numpy().sum())
        return Assignment(sums, sizes, max(inertia, 0.0))

    def selected(self, rows: Int64[np.ndarray, " n"], norms: Float64[np.ndarray, " all"]) -> "Assigner":
        """Return the same for some rows, sorted; `norms`: squared, of all."""
        features = SelectedRows(self.features, rows, self.block_rows)
        return replace(self, features=features, squared_norm=float(norms[rows].sum()))


def _add_rows(sums: Float64[Tensor, "K D"], labels: Int64[Tensor, " rows"], tile: Float64[Tensor, "rows D"]) -> None:
    # Additions in one order. On CUDA index_add_ is atomic, in any order, while index_put_ sorts by label, stably, and
    # adds each run in row order; on the CPU it is index_put_ that is atomic and index_add_ that goes row by row.
    if sums.is_cuda:
        sums.index_put_((labels,), tile, accumulate=True)
    else:
        sums.index_add_(0, labels, tile)


def fit_lloyd(
    whole: Assigner,
    row_norms: Float64[np.ndarray, " n"],
    options: CodebookOptions,
    *,
    resume: KMeansState | None,
    on_iteration: Callable[[KMeansState], None] | None,
) -> KMeansResult:
    """Run all restarts and return the best.

    Args:
        row_norms: |x_i|^2.
        resume: a state that `on_iteration` got: the result is the same bits as without the interruption.
    """
    training, norms = _training_part(whole, row_norms, options)
    plan = _Plan.of(training, norms, options)
    state = resume or _begin(0, plan, options)
    state.check(options, width=whole.features.width, iterations=plan.iterations)
    while True:
        while not plan.is_done(state):
            state = _iterate(state, plan, options)
            if on_iteration is not None:
                on_iteration(state)
        best = _better(state, whole.assign(state.centroids))
        if state.restart + 1 == options.redo:
            return KMeansResult(best.centroids, state.history, best.sizes, best.inertia, best.restart)
        state = replace(_begin(state.restart + 1, plan, options), history=state.history, best=best)


class _Draw(IntEnum):
    """What randomness is for: a part of each generator's seed, so that no two purposes share a stream."""

    TRAINING_ROWS = 1
    FIRST_CENTROIDS = 2
    SPLIT_DONORS = 3
    GROWING_PARTS = 4


@dataclass(frozen=True)
class _Plan:
    """What the iterations of a restart work on: first a part of the rows each (mode `growing`), then all.

    Attributes:
        parts: one for each of the first iterations.
        iterations: at most so many in all.
    """

    parts: tuple[Assigner, ...]
    training: Assigner
    iterations: int
    grows: bool

    @classmethod
    def of(cls, training: Assigner, norms: Float64[np.ndarray, " n"], options: CodebookOptions) -> "_Plan":
        if options.mode != "growing":
            return cls((), training, options.iterations, False)
        count = len(training.features)
        rng = np.random.default_rng((options.seed, _Draw.GROWING_PARTS))
        drawn = draw_parts(count, options.vocabulary, rng)
        made = {part: training.selected(rows, norms) for part, rows in drawn.items()}
        parts = tuple(made[part] for part in parts_of(count, options.vocabulary))
        return cls(parts, training, len(parts) + options.iterations, True)

    def assigner(self, iteration: int) -> Assigner:
        return self.parts[iteration] if iteration < len(self.parts) else self.training

    def is_done(self, state: KMeansState) -> bool:
        """Tell whether the restart has come to its end."""
        if state.iteration == self.iterations:
            return True
        if not self.grows:
            return state.has_converged
        whole = state.history_of_restart[len(self.parts) :]
        return bool(whole) and (state.has_converged or gains_little(whole[-1].inertia, whole[:-1]))

    def stretch(self, state: KMeansState, inertia: float) -> float:
        """Return how far the centroids go: 1 is to the mean."""
        whole = state.history_of_restart[len(self.parts) :]
        is_last = state.iteration + 1 == self.iterations or gains_little(inertia, whole)
        return STRETCH if self.grows and not is_last else 1.0


def _training_part(
    whole: Assigner, row_norms: Float64[np.ndarray, " n"], options: CodebookOptions
) -> tuple[Assigner, Float64[np.ndarray, " kept"]]:
    """Return what is clustered, and the squared norms of its rows."""
    count = len(whole.features)
    if options.max_points_per_centroid is None or count <= options.vocabulary * options.max_points_per_centroid:
        return whole, row_norms
    kept = options.vocabulary * options.max_points_per_centroid
    rng = np.random.default_rng((options.seed, _Draw.TRAINING_ROWS))
    rows = np.sort(rng.choice(count, kept, replace=False, shuffle=False))
    return whole.selected(rows, row_norms), row_norms[rows]


def _begin(restart: int, plan: _Plan, options: CodebookOptions) -> KMeansState:
    # Random rows, not k-means++: on heavy-tailed features that lowers the inertia by giving centroids to outliers.
    rng = np.random.default_rng((options.seed, _Draw.FIRST_CENTROIDS, restart))
    first = plan.assigner(0)
    rows = np.sort(rng.choice(len(first.features), options.vocabulary, replace=False, shuffle=False))
    chosen = SelectedRows(first.features, rows, first.block_rows)
    return KMeansState(restart, 0, chosen.read(0, len(rows)).astype(np.float32))


def _iterate(state: KMeansState, plan: _Plan, options: CodebookOptions) -> KMeansState:
    assignment = plan.assigner(state.iteration).assign(state.centroids)
    sizes = assignment.sizes.cpu().numpy()
    rng = np.random.default_rng((options.seed, _Draw.SPLIT_DONORS, state.restart, state.iteration))
    means = (assignment.sums / assignment.sizes.clamp(min=1).unsqueeze(1)).float().cpu().numpy()
    stretch = plan.stretch(state, assignment.inertia)
    moved = means if stretch == 1 else state.centroids + np.float32(stretch) * (means - state.centroids)
    centroids, splits = split_empty_clusters(moved, sizes, rng)
    use = codebook_statistics(sizes)
    record = KMeansIteration(
        restart=state.restart,
        iteration=state.iteration,
        inertia=assignment.inertia,
        used_share=use.used_share,
        perplexity=use.perplexity,
        largest_share=use.largest_share,
        centroid_shift=_root_mean_square_shift(state.centroids, centroids),
        splits=splits,
    )
    return replace(state, iteration=state.iteration + 1, centroids=centroids, history=(*state.history, record))


def split_empty_clusters(
    centroids: Float32[np.ndarray, "K D"], sizes: Int64[np.ndarray, " K"], rng: np.random.Generator
) -> tuple[Float32[np.ndarray, "K D"], int]:
    """Give each empty cluster half of another one; return the table after it, and the number of splits.

    As in FAISS, the donor is drawn with probability ~ size - 1, both halves get its centroid times 1 +- 1/1024 with
    signs that alternate over the dimensions, and the donor's size is shared. Johnson et al., 2017 (the code of FAISS).
    """
    centroids, sizes = centroids.copy(), sizes.copy()
    nudge = np.where(np.arange(centroids.shape[1]) % 2 == 0, SPLIT_EPSILON, -SPLIT_EPSILON).astype(np.float32)
    empty = np.flatnonzero(sizes == 0)
    for cluster in empty:
        weights = np.maximum(sizes - 1, 0)  # some cluster has two vectors, as there are at least K of them
        donor = rng.choice(len(sizes), p=weights / weights.sum())
        centroids[cluster] = centroids[donor] * (1 + nudge)
        centroids[donor] *= 1 - nudge
        sizes[cluster] = sizes[donor] // 2
        sizes[donor] -= sizes[cluster]
    return centroids, len(empty)


def _root_mean_square_shift(old: Float32[np.ndarray, "K D"], new: Float32[np.ndarray, "K D"]) -> float:
    return float(np.sqrt(np.square(np.subtract(new, old, dtype=np.float64)).sum(axis=1).mean()))


def _better(state: KMeansState, final: Assignment) -> BestRestart:
    if state.best is not None and state.best.inertia <= final.inertia:
        return state.best
    return BestRestart(state.restart, state.centroids, final.sizes.cpu().numpy(), final.inertia)
