"""What an evaluation says: numbers in percent, with a 95 % bootstrap interval over the images that were judged.

Of a number that is computed from sums over images, as mean IoU is, the draws need two things to be draws of it. Each
has all classes of the whole set: if one fell out where none of its images is drawn, the mean over the others would be
another number. And their median is moved onto the number itself: ratios of which few images hold a part are smaller in
most draws, and where there are many such, the number lies beyond all of these.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline.engine.errors import PipelineError

SCORES, CORRECT = "scores.json", "correct.npz"
_DRAWS = 1_000
_TRACE = 1e-9  # of every image in every draw: what only images have that were not drawn is as in the whole set


@dataclass(frozen=True)
class Score:
    """A number in percent. `low` and `high`: 95 % bootstrap interval over the validation images; it knows the chance in
    which images were judged, not that in training. `reading`: what exactly was measured, in words. `remark`: what to
    know before it is compared with anything; mostly nothing."""

    name: str
    value: float
    low: float
    high: float
    images: int
    reading: str
    remark: str = ""


def score(name: str, correct: np.ndarray, reading: str, remark: str = "") -> Score:
    """Return the share of judgements that are right.

    Args:
        correct: bool [images].

    Raises:
        PipelineError: no image was judged.
    """
    _require_images(name, correct)
    # The number of right answers in a resampled set of the same size is binomial: drawing it directly is the bootstrap.
    draws = np.random.default_rng(0).binomial(len(correct), correct.mean(), _DRAWS) / len(correct)
    low, high = np.quantile(draws, (0.025, 0.975))
    value, low, high = (round(100 * float(part), 3) for part in (correct.mean(), low, high))
    return Score(name, value, low, high, len(correct), reading, remark)


def score_of_sums(name: str, counts: np.ndarray, measure: Callable[[np.ndarray], float], reading: str) -> Score:
    """Return a number that is not a mean over images but computed from sums over them, as mean IoU is.

    The interval's draws are sets of as many whole images, with replacement: pixels of an image are not independent.

    Args:
        counts: [images, ...].
        measure: of counts[0] + counts[1] + ..., a share from 0 to 1.

    Raises:
        PipelineError: no image was judged.
    """
    _require_images(name, counts)
    value = measure(counts.sum(0))
    low, high = np.clip(_interval(value, [measure(drawn) for drawn in _resampled_sums(counts)]), 0, 1)
    value, low, high = (round(100 * float(part), 3) for part in (value, low, high))
    return Score(name, value, low, high, len(counts), reading)


def paired_difference(
    first: np.ndarray, second: np.ndarray, measure: Callable[[np.ndarray], float]
) -> tuple[float, float, float]:
    """Return how much more the first scores than the second on the same images: points, and their 95 % bootstrap
    interval.

    Args:
        first, second: [images, ...], as for `score_of_sums`; of the same images in the same order.
        measure: of sums over images, a share from 0 to 1.
    """
    points = measure(first.sum(0)) - measure(second.sum(0))
    sums = zip(_resampled_sums(first), _resampled_sums(second), strict=True)
    low, high = _interval(points, [measure(one) - measure(other) for one, other in sums])
    return 100 * float(points), 100 * float(low), 100 * float(high)


def _interval(value: float, draws: Sequence[float]) -> tuple[float, float]:
    """Return the bounds of 95 % of the draws, whose median is moved onto the value; the value itself where all draws
    are alike."""
    low, middle, high = np.quantile(draws, (0.025, 0.5, 0.975))
    return value - float(middle - low), value + float(high - middle)


def _resampled_sums(counts: np.ndarray) -> np.ndarray:
    """Return [draws, ...]: sums over as many images, drawn with replacement; the same images for all counts of a
    length."""
    images = len(counts)
    times = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), _DRAWS)
    weights = times + _TRACE  # of float64, whose products are much faster than int64's
    return (weights @ counts.reshape(images, -1).astype(np.float64)).reshape(_DRAWS, *counts.shape[1:])


def _require_images(name: str, judged: np.ndarray) -> None:
    if not len(judged):
        raise PipelineError(f"{name}: no image was judged, so there is nothing to measure; check the validation split")


def write_scores(folder: Path, scores: Sequence[Score], correct: dict[str, np.ndarray]) -> None:
    """Write the scores, and what was right in which image, from which differences of two evaluations can be tested.

    Args:
        correct: arrays whose last axis is the images; those of images that were right or wrong by the score's name.
    """
    (folder / SCORES).write_text(json.dumps([asdict(item) for item in scores], indent=1) + "\n")
    np.savez_compressed(folder / CORRECT, **correct)  # type: ignore[arg-type]


def read_scores(folder: Path) -> list[Score]:
    return [Score(**item) for item in json.loads((folder / SCORES).read_text())]
