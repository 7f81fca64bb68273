"""Stage `fit_codebook`: cluster the feature sample; the centroids are the visual vocabulary (paper, section 4.2)."""

import logging
import time
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import ClassVar

import numpy as np

from models.kmeans.growing import parts_of, rows_visited
from models.kmeans.options import CodebookOptions
from models.kmeans.state import KMeansResult, KMeansState
from models.kmeans.statistics import KMeansIteration, codebook_statistics
from pipeline.engine.fingerprint import defining_options
from pipeline.engine.memory import FREE_MEMORY, shortage_explained
from pipeline.engine.parts import Parts
from pipeline.engine.progress import progress
from pipeline.engine.stage import Made, Source, Stage, recipe_of
from pipeline.engine.stops import raise_if_stopped
from pipeline.engine.tracker import TrackedRun
from pipeline.stages.records import CodebookRecord
from storage.artifact import Built, Recipe
from storage.codebook_file import Codebook, write_codebook
from storage.feature_sample import FeatureSample
from storage.files import replace_file

_STATE = "state.npz"
_WHOLE_OF_GROWING = 5  # iterations over all vectors that a run on 80,000 raw patches took before it ended
logger = logging.getLogger("mapet.stages")


@dataclass(frozen=True)
class FitCodebook(Stage):
    """Fit k-means to a feature sample; but in mode `reference` a killed fit goes on from its last iteration, to the
    same bits."""

    NAME: ClassVar[str] = CodebookRecord.STAGE

    options: CodebookOptions
    features: Source

    def recipe(self, made: Made) -> Recipe:
        return recipe_of(self, defining_options(self.options), features=made[self.features].digest)

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        """Raises ModelError for fewer vectors than centroids, values that are not finite, or nothing but equal ones."""
        from models.kmeans.clustering import fit_kmeans

        options = self.options
        state = _load_state(folder / _STATE)
        done = len(state.history) if state else 0
        if state:
            logger.info("fit_codebook: going on after iteration %d", done)
        with progress("fit codebook", options.iterations * options.redo, done=done, unit="iterations") as advance:

            def after_iteration(state: KMeansState) -> None:
                latest = state.history[-1]
                run.metrics(_metrics(latest), step=len(state.history))
                with replace_file(folder / _STATE) as temporary, temporary.open("wb") as file:
                    np.savez(file, allow_pickle=False, **state.to_arrays())
                advance(1)
                raise_if_stopped()

            started, sample = time.monotonic(), FeatureSample(made[self.features].path)
            with shortage_explained(*_needs(options, sample)):
                result = fit_kmeans(
                    sample,
                    options,
                    device=made.settings.torch_device(),
                    resume=state,
                    on_iteration=after_iteration,
                )
            parts = Parts()
            numbers = [record.iteration for record in result.history[done:]]
            distances = distances_of(options, vectors=int(result.sizes.sum()), iterations=numbers)
            parts.add("k-means", distances, time.monotonic() - started)
        if options.mode == "reference":  # FAISS tells of its iterations at the end
            for step, iteration in enumerate(result.history, start=1):
                run.metrics(_metrics(iteration), step=step)
        history = [{name: _known(value) for name, value in asdict(item).items()} for item in result.history]
        write_codebook(folder, Codebook(result.centroids, result.sizes, history))
        (folder / _STATE).unlink(missing_ok=True)
        return _record(result).built(parts.notes())


def distances_of(options: CodebookOptions, *, vectors: int, iterations: Iterable[int]) -> int:
    """Count the comparisons of a vector with a centroid: what the time of k-means grows with.

    Args:
        iterations: their numbers, each in its restart.
    """
    most = (options.max_points_per_centroid or vectors) * options.vocabulary
    rows = min(vectors, most)
    if options.mode == "growing":
        return options.vocabulary * sum(rows_visited(rows, options.vocabulary, number) for number in iterations)
    return options.vocabulary * rows * len(list(iterations))


def expected_iterations(options: CodebookOptions, *, vectors: int) -> list[int]:
    """Return the numbers of the iterations of all restarts, as far as one can know before: those of mode `growing` end
    by themselves."""
    most = (options.max_points_per_centroid or vectors) * options.vocabulary
    first = len(parts_of(min(vectors, most), options.vocabulary)) if options.mode == "growing" else 0
    whole = min(options.iterations, _WHOLE_OF_GROWING) if options.mode == "growing" else options.iterations
    return list(range(first + whole)) * options.redo


def _needs(options: CodebookOptions, sample: FeatureSample) -> tuple[str, str]:
    """Return what may not fit in memory, and what to do then."""
    vectors = f"{len(sample):,} x {sample.width}"
    if options.mode == "reference":  # which copies all vectors, four bytes a number
        return f"a k-means of {vectors} in mode reference", "set codebook.mode=lloyd, which reads them block by block"
    what = f"a k-means of {vectors} and {options.vocabulary:,} centroids"
    return what, f"{FREE_MEMORY}, set codebook.vocabulary to less, or settings.device=cpu"


def _load_state(path: Path) -> KMeansState | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return KMeansState.from_arrays(dict(arrays))
    except FileNotFoundError:
        return None
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        logger.warning("%s: unreadable (%s); k-means starts again", path, error)
        return None


def _metrics(latest: KMeansIteration) -> dict[str, float]:
    values = {name: _known(value) for name, value in asdict(latest).items() if name not in ("restart", "iteration")}
    return {name: value for name, value in values.items() if value is not None}


def _known(value: float) -> float | None:
    """Return None for NaN, which stands for what FAISS's own k-means does not tell."""
    return None if isnan(value) else value


def _record(result: KMeansResult) -> CodebookRecord:
    return CodebookRecord(
        vocabulary=len(result.centroids),
        width=result.centroids.shape[1],
        vectors=int(result.sizes.sum()),
        iterations=len(result.history),
        inertia=result.inertia,
        **asdict(codebook_statistics(result.sizes)),
    )
