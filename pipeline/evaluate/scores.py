"""What an evaluation says: numbers in percent, with a bootstrap interval over the images that were judged."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

SCORES, CORRECT = "scores.json", "correct.npz"
_DRAWS = 1_000


@dataclass(frozen=True)
class Score:
    """A number in percent. `low` and `high`: 95 % bootstrap interval over the validation images; it knows the chance in
    which images were judged, not that in training. `reading`: what exactly was measured, in words."""

    name: str
    value: float
    low: float
    high: float
    images: int
    reading: str


def score(name: str, correct: np.ndarray, reading: str) -> Score:
    """The share of judgements that are right.

    Args:
        correct: bool [images].
    """
    # The number of right answers in a resampled set of the same size is binomial: drawing it directly is the bootstrap.
    draws = np.random.default_rng(0).binomial(len(correct), correct.mean(), _DRAWS) / len(correct)
    low, high = np.quantile(draws, (0.025, 0.975))
    value, low, high = (round(100 * float(part), 3) for part in (correct.mean(), low, high))
    return Score(name, value, low, high, len(correct), reading)


def score_of_sums(name: str, counts: np.ndarray, measure: Callable[[np.ndarray], float], reading: str) -> Score:
    """A number that is not a mean over images but computed from sums over them, as mean IoU is.

    The interval's draws are sets of as many whole images, with replacement: pixels of an image are not independent.

    Args:
        counts: [images, ...], none of which is empty.
        measure: of counts[0] + counts[1] + ..., a share from 0 to 1.
    """
    low, high = np.quantile([measure(drawn) for drawn in _resampled_sums(counts)], (0.025, 0.975))
    value, low, high = (round(100 * float(part), 3) for part in (measure(counts.sum(0)), low, high))
    return Score(name, value, low, high, len(counts), reading)


def paired_difference(
    first: np.ndarray, second: np.ndarray, measure: Callable[[np.ndarray], float]
) -> tuple[float, float, float]:
    """How much more the first scores than the second on the same images: points, and their 95 % bootstrap interval.

    Args:
        first, second: [images, ...], as for `score_of_sums`; of the same images in the same order.
        measure: of sums over images, a share from 0 to 1.
    """
    sums = zip(_resampled_sums(first), _resampled_sums(second), strict=True)
    low, high = np.quantile([measure(one) - measure(other) for one, other in sums], (0.025, 0.975))
    points = measure(first.sum(0)) - measure(second.sum(0))
    return 100 * float(points), 100 * float(low), 100 * float(high)


def _resampled_sums(counts: np.ndarray) -> np.ndarray:
    """[draws, ...]: sums over as many images, drawn with replacement; the same images for all counts of a length."""
    images = len(counts)
    # How often each image is in a set; sums of whole numbers are exact in float64, and much faster than in int64.
    times = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), _DRAWS).astype(np.float64)
    return (times @ counts.reshape(images, -1).astype(np.float64)).reshape(_DRAWS, *counts.shape[1:])


def write_scores(folder: Path, scores: Sequence[Score], correct: dict[str, np.ndarray]) -> None:
    """The scores, and what was right in which image, from which differences of two evaluations can be tested.

    Args:
        correct: arrays whose last axis is the images; those of images that were right or wrong by the score's name.
    """
    (folder / SCORES).write_text(json.dumps([asdict(item) for item in scores], indent=1) + "\n")
    np.savez_compressed(folder / CORRECT, **correct)  # type: ignore[arg-type]


def read_scores(folder: Path) -> list[Score]:
    return [Score(**item) for item in json.loads((folder / SCORES).read_text())]
