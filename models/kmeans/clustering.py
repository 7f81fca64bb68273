"""The codebook: k-means over patch features with FAISS, on CPU or GPU, behind one function.

Mode `lloyd` runs our loop (`models/kmeans/lloyd.py`) over FAISS's exact flat index and reads the features by blocks, in
the precision they are stored in: the float32 copy of the sample that `faiss.Kmeans` needs (82 GB for the 5 million
vectors of ImageNet's 2 %) is never made, and every vector is clustered. Mode `reference` calls `faiss.Kmeans` as the
official k-CLIP code does. Mode `growing` is our loop on samples of the features first (`models/kmeans/growing.py`).

Johnson, Douze, Jegou, "Billion-scale similarity search with GPUs", 2017 (FAISS).
Baraldi et al., "Learning to Mask and Permute Visual Tokens for Vision Transformer Pre-Training", 2023 (k-CLIP).
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from math import nan
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from models.errors import ModelError
from models.kmeans.card_rows import on_card
from models.kmeans.lloyd import Assigner, fit_lloyd
from models.kmeans.norms import squared_norms
from models.kmeans.options import CodebookOptions
from models.kmeans.rows import FeatureRows, read_tiles
from models.kmeans.state import KMeansResult, KMeansState
from models.kmeans.statistics import CodebookStatistics, KMeansIteration, codebook_statistics, histogram_of_sizes

__all__ = [
    "CodebookOptions",
    "CodebookStatistics",
    "FeatureRows",
    "KMeansIteration",
    "KMeansResult",
    "KMeansState",
    "codebook_statistics",
    "fit_kmeans",
    "histogram_of_sizes",
]


logger = logging.getLogger(__name__)


def fit_kmeans(
    features: FeatureRows,
    options: CodebookOptions,
    *,
    device: torch.device | str = "cpu",
    block_rows: int = 65_536,
    resume: KMeansState | None = None,
    on_iteration: Callable[[KMeansState], None] | None = None,
) -> KMeansResult:
    """Cluster rows [n, D] into a codebook [K, D] by squared Euclidean distance.

    Modes `lloyd` and `growing` return the same bits for a seed on one machine, whatever `block_rows` and the number of
    threads, and wherever they were interrupted: `on_iteration` gets a state after each iteration, `resume` goes on from
    one. A restart ends early, with a shorter history, once an iteration has left every centroid where it was, or in
    mode `growing` once one on all rows gained little.

    Mode `reference` is `faiss.Kmeans` as the official code calls it. It holds a float32 copy of all rows, 4 n D bytes
    (plus one of the subset that FAISS draws), reports no iteration while it runs and cannot be resumed.

    On "cuda" the search runs in FAISS's GPU index, or, with a warning, on the CPU where the installed FAISS has none.

    Raises ModelError: fewer rows than centroids, values that are not finite, all rows equal, rows of another dtype or
    width than promised, a state of another run, FAISS not installed.
    """
    faiss = _load_faiss()
    if len(features) < options.vocabulary:
        raise ModelError(
            f"{len(features)} feature rows cannot make {options.vocabulary} centroids: "
            "sample more patches or lower codebook.vocabulary"
        )
    search = _FlatSearch(faiss, width=features.width, device=_usable_device(faiss, torch.device(device)))
    if search.device.type == "cuda" and options.mode != "reference":
        features = on_card(features, vocabulary=options.vocabulary, block_rows=block_rows, device=search.device)
    row_norms = squared_norms(features, block_rows=block_rows, device=search.device)
    whole = Assigner(search, features, float(row_norms.sum()), block_rows)
    if options.mode != "reference":
        return fit_lloyd(whole, row_norms, options, resume=resume, on_iteration=on_iteration)
    if resume is not None:
        raise ModelError("codebook.mode=reference cannot resume a run: delete the saved state or use mode=lloyd")
    return _fit_reference(faiss, search, whole, options)


def _load_faiss() -> ModuleType:
    try:
        import faiss
        import faiss.contrib.torch_utils  # teaches the indexes to take tensors
    except ImportError as error:
        raise ModelError(
            f"k-means needs FAISS, which cannot be imported ({error}): run `make install`, or `make install FAISS=gpu` "
            "on a machine with an NVIDIA GPU (without make: extra cpu or gpu of this package, never both)"
        ) from error
    return faiss


def _usable_device(faiss: ModuleType, device: torch.device) -> torch.device:
    if device.type != "cuda":
        return device
    if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0:
        return device
    why = "finds no GPU" if hasattr(faiss, "StandardGpuResources") else "is faiss-cpu, which knows none"
    logger.warning(
        "k-means runs on the CPU though there is a GPU, many times slower: the installed FAISS %s (`make install "
        "FAISS=gpu` installs faiss-gpu)",
        why,
    )
    return torch.device("cpu")


class _FlatSearch:
    """FAISS's flat index: the nearest centroid by exact search, on the CPU or on one GPU."""

    def __init__(self, faiss: ModuleType, *, width: int, device: torch.device) -> None:
        self.device = device
        self.index: Any
        if device.type == "cuda":
            config = faiss.GpuIndexFlatConfig()
            config.device = torch.cuda.current_device() if device.index is None else device.index
            self.index = faiss.GpuIndexFlatL2(faiss.StandardGpuResources(), width, config)
        else:
            self.index = faiss.IndexFlatL2(width)

    def set_centroids(self, centroids: Float32[Tensor, "K D"]) -> None:
        """Search among these from now on."""
        with self._on_device():
            self.index.reset()
            self.index.add(centroids)

    def nearest(self, tile: Float32[Tensor, "rows D"]) -> Int64[Tensor, " rows"]:
        """Return the number of the nearest centroid of each row; -1, as FAISS says, where no distance is a number."""
        with self._on_device():
            return self.index.search(tile, 1)[1][:, 0]

    def _on_device(self) -> AbstractContextManager[object]:
        """Make this the current device: FAISS orders its work after torch's on the current device's stream."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def _fit_reference(faiss: ModuleType, search: _FlatSearch, whole: Assigner, options: CodebookOptions) -> KMeansResult:
    features = whole.features
    kmeans = faiss.Kmeans(
        features.width,
        options.vocabulary,
        niter=options.iterations,
        nredo=options.redo,
        seed=options.seed,
        # FAISS keeps 256 vectors per centroid, silently, unless told otherwise.
        max_points_per_centroid=options.max_points_per_centroid or len(features),
        min_points_per_centroid=1,  # no warning on stderr: the caller sees sizes
    )
    if search.device.type == "cuda":
        kmeans.index = search.index  # `gpu=True` would take all GPUs, the first one among them
    copy = np.empty((len(features), features.width), dtype=np.float32)
    for start, tile in read_tiles(features, block_rows=whole.block_rows, device=torch.device("cpu")):
        copy[start : start + len(tile)] = tile.numpy()
    kmeans.train(copy)
    history = _reference_history(kmeans.iteration_stats, iterations=options.iterations)
    final = whole.assign(kmeans.centroids)
    return KMeansResult(kmeans.centroids, history, final.sizes.cpu().numpy(), final.inertia, history[-1].restart)


def _reference_history(stats: Iterable[dict[str, Any]], *, iterations: int) -> tuple[KMeansIteration, ...]:
    """Split FAISS's statistics, which run through the restarts up to the best one without saying where each begins.

    A restart ends after its last iteration, or when the objective, in FAISS's float32, repeats exactly.
    """
    history: list[KMeansIteration] = []
    restart = iteration = 0
    for entry in stats:
        inertia = float(entry["obj"])
        history.append(KMeansIteration(restart, iteration, inertia, nan, nan, nan, nan, int(entry["nsplit"])))
        is_last = iteration + 1 == iterations or (iteration > 0 and history[-2].inertia == inertia)
        restart, iteration = (restart + 1, 0) if is_last else (restart, iteration + 1)
    return tuple(history)
