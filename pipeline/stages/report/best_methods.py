"""Which of several methods leads, and which differences to it are more than chance.

Two methods that judge the same images are compared image by image: the difference of their scores is drawn from sets of
images that are resampled together (paired bootstrap). That knows the chance in which images were judged; the chance in
training shows only where there are several seeds, of which the judgements are averaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.stages.evaluate.scores import CORRECT, paired_difference
from pipeline.stages.evaluate.segmentation_metrics import mean_iou
from pipeline.stages.report.metrics import is_main
from pipeline.stages.report.our_results import OurResult


@dataclass(frozen=True)
class Difference:
    """How far a method is from the leader, in points, with the 95 % interval."""

    name: str
    points: float
    low: float
    high: float

    @property
    def is_chance(self) -> bool:
        """Whether the interval holds zero: the two may be equally good."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class BestMethod:
    """The best of a metric, and the others, best first."""

    metric: str
    backbone: str
    name: str
    value: float
    others: tuple[Difference, ...]

    def behind(self, *, by_chance: bool) -> list[Difference]:
        return [other for other in self.others if other.is_chance == by_chance]


def best_methods(results: Sequence[OurResult]) -> tuple[BestMethod, ...]:
    """Find the best of every metric that several methods (or tokenizers) were measured by on the same images."""
    groups: dict[tuple[str, str, str, tuple[int, ...]], dict[str, list[_Judged]]] = {}
    for result in results:
        if result.score and is_main(result.metric) and result.value is not None:
            judged = _judged(result)
            key = (result.metric, result.data, result.backbone, judged.shape)  # of as many images and classes
            found = groups.setdefault(key, {}).setdefault(_name(result, results), [])
            found.append(_Judged(result.value, judged))
    return tuple(
        _best_method(metric, backbone, methods)
        for (metric, _, backbone, _), methods in groups.items()
        if len(methods) > 1
    )


@dataclass(frozen=True)
class _Judged:
    """One seed of a method. `images`: [images], each its part of the score, or [images, 3, K], whose sums the mean IoU
    is computed from."""

    value: float
    images: np.ndarray


def _name(result: OurResult, results: Sequence[OurResult]) -> str:
    if result.method == "tokens":
        return result.tokenizer
    alike = [other for other in results if other.method == result.method]
    words = [result.method, f"on {result.tokenizer}" if len({other.tokenizer for other in alike}) > 1 else ""]
    words += [result.length.words if len({other.length for other in alike}) > 1 else ""]
    words += [f"c = {result.cutting_point}" if result.cutting_point else ""]
    return ", ".join(word for word in words if word)


def _best_method(metric: str, backbone: str, methods: dict[str, list[_Judged]]) -> BestMethod:
    values = {name: float(np.mean([seed.value for seed in found])) for name, found in methods.items()}
    first, *others = sorted(methods, key=lambda name: -values[name])
    judged = {name: np.stack([seed.images for seed in found], axis=1) for name, found in methods.items()}
    of_one = mean_iou if metric == "mIoU" else float

    def measure(seeds: np.ndarray) -> float:
        return sum(map(of_one, seeds)) / len(seeds)

    return BestMethod(
        metric,
        backbone,
        first,
        values[first],
        tuple(Difference(name, *paired_difference(judged[name], judged[first], measure)) for name in others),
    )


def _judged(result: OurResult) -> np.ndarray:
    """Read what was judged of each image, as in `_Judged.images`."""
    with np.load(Path(result.folder) / CORRECT, allow_pickle=False) as stored:
        if result.score == "miou":
            return np.moveaxis(np.stack([stored[name] for name in ("right", "labelled", "predicted")]), 2, 0)
        correct: np.ndarray = stored[result.score]
        return correct / len(correct)
