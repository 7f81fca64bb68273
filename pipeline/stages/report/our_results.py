"""A number that we measured (`OurResult`), whether it compares with the paper's, and several of one cell as one
(`Comparison`).

Comparable is what was measured on the paper's data, after pre-training on the paper's data for as many epochs as the
paper's, with no recorded option that differs from the paper's preset (`departures`). Everything else is named by its
circumstances and kept away from the paper's numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.engine.errors import PipelineError
from pipeline.paper.results import (
    ADE20K,
    CLASSIFIER,
    IMAGENET,
    PAPER_EPOCHS,
    SCRATCH,
    ZERO_SHOT,
    Setting,
    is_pretrained,
)
from pipeline.training.options import TrainingLength

_ROUNDING = 1e-4  # what 32-bit floats may do to a percentage
_TRANSFER = "linear_probe_top1["
_METHODS = {"scratch": SCRATCH}  # our name -> the paper's


@dataclass(frozen=True)
class OurResult:
    """One evaluation.

    Attributes:
        method: "MIM", "PIM", "MaPeT", "BEiT", "CAE" or "scratch"; anything for tokens as input and zero-shot, whose
            metric says enough.
        tokenizer: "k-CLIP", "VQ-KD", "DALL-E", "none" or another name.
        backbone: "ViT-T", "ViT-S", "ViT-B", "MLP", for zero-shot "RN50x64", or another name.
        metric: a name of `results.csv`, or another one.
        value: in percent; None where what was recorded is no number.
        interval: 95 % bootstrap interval of the value, in percent; None where there is none that holds it.
        seeds: how many runs the value is the mean of.
        preset: by which it was made.
        data: that it was measured on: "ImageNet-1k", "ADE20K", "stanford_cars", "food101", "fgvc_aircraft", "demo", ...
        run: MLflow's id; `""` without tracking.
        link: address of that run; `""` where there is none.
        pretraining_data: where it is not `data`.
        epochs: of pre-training; None without one, or of one that was measured in steps.
        steps: of pre-training, where that was measured in them.
        cutting_point: MaPeT's c, for runs of the ablation (Table 6); None for the usual one of the backbone.
        departures: what else differs from the paper's presets, in words ("fine_tune.mixup 0.0 instead of 0.8").
        remark: what to know of the number before comparing it, in words.
        score, folder: its name in the evaluation that it is from, and that evaluation's artifact; `""` if unknown.

    Raises:
        PipelineError: the value is no percentage, lies outside its interval, or has no seed behind it.
    """

    method: str
    tokenizer: str
    backbone: str
    metric: str
    value: float | None
    interval: tuple[float, float] | None
    seeds: int
    preset: str
    data: str
    run: str = ""
    link: str = ""
    pretraining_data: str = ""
    epochs: int | None = None
    steps: int | None = None
    cutting_point: int | None = None
    departures: tuple[str, ...] = ()
    remark: str = ""
    score: str = ""
    folder: str = ""

    def __post_init__(self) -> None:
        if not is_sound(self.value, self.interval) or self.seeds < 1:
            raise PipelineError(
                f"{self.method}, {self.metric}: {self.value} with the interval {self.interval} and {self.seeds} seeds; "
                "expected percent between 0 and 100, inside the interval, of at least one seed"
            )

    @property
    def length(self) -> TrainingLength:
        """Of the pre-training."""
        return TrainingLength(self.epochs, self.steps)

    @property
    def setting(self) -> Setting:
        """In the words of the paper's file."""
        method = _METHODS.get(self.method, self.method)
        if self.metric.endswith("_tokens_as_input"):
            method = CLASSIFIER
        elif self.metric.startswith("zero_shot"):
            method = ZERO_SHOT
        return Setting(method, self.tokenizer, self.backbone, self.metric, self.epochs, self.cutting_point)

    @property
    def circumstances(self) -> str:
        """`""` for a result that compares with the paper's; otherwise the data, and what else keeps it from that."""
        pretrained, on_paper_data = is_pretrained(self.setting.method), self.data == _data_of_the_paper(self.metric)
        source, usual = self.pretraining_data or self.data, IMAGENET if on_paper_data else self.data
        words = [f"pre-trained on {source}"] if pretrained and source != usual else []
        if on_paper_data:
            if pretrained and self.epochs != PAPER_EPOCHS:
                words.append(f"{self.length.words} of pre-training")
            words += self.departures
        return "" if on_paper_data and not words else ", ".join([self.data, *words])


def is_sound(value: float | None, interval: tuple[float, float] | None) -> bool:
    """Return whether a value is a percentage inside its interval, or neither is there."""
    if value is None:
        return interval is None
    low, high = interval or (value, value)
    return all(first <= second + _ROUNDING for first, second in pairwise((0, low, value, high, 100)))


@dataclass(frozen=True)
class Comparison:
    """What we have for one cell from one preset: results that differ in seeds only, beside the paper's number.

    `paper` is None where there is none, or none that compares.
    """

    results: tuple[OurResult, ...]
    paper: float | None = None

    @property
    def seeds(self) -> int:
        return sum(result.seeds for result in self.results)

    @property
    def value(self) -> float | None:
        """Mean over seeds, in percent; None where one of them has no value."""
        values = self._values
        if len(values) < len(self.results):
            return None
        return sum(value * result.seeds for value, result in zip(values, self.results, strict=True)) / self.seeds

    @property
    def spread(self) -> tuple[float, float] | None:
        """Lowest and highest of several results; None for a single one."""
        values = self._values
        return (min(values), max(values)) if len(values) > 1 else None

    @property
    def _values(self) -> list[float]:
        """Of the results that have one."""
        return [result.value for result in self.results if result.value is not None]

    @property
    def interval(self) -> tuple[float, float] | None:
        """From the lowest to the highest bound of all results, so that images and seeds are both in it."""
        bounds = [bound for result in self.results for bound in result.interval or ()]
        bounds += self.spread or ()
        return (min(bounds), max(bounds)) if bounds else None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in points."""
        return None if self.paper is None or self.value is None else self.value - self.paper

    @property
    def within_noise(self) -> bool | None:
        """Whether the paper's number lies in our interval; None where one of them is missing."""
        if self.paper is None or self.interval is None:
            return None
        low, high = self.interval
        return low <= self.paper <= high

    @property
    def preset(self) -> str:
        return self.results[0].preset

    @property
    def backbone(self) -> str:
        return self.results[0].backbone


def compared(results: Sequence[OurResult], paper: float | None = None) -> tuple[Comparison, ...]:
    """Return the results of one cell: those that differ in their seeds only become one `Comparison`."""
    alike: dict[tuple[object, ...], list[OurResult]] = {}
    for result in results:
        key = (result.preset, result.backbone, result.length, result.cutting_point, result.departures)
        alike.setdefault(key, []).append(result)
    return tuple(Comparison(tuple(group), paper) for group in alike.values())


def _data_of_the_paper(metric: str) -> str:
    """Return the data that the paper measured it on."""
    if metric.startswith(_TRANSFER):
        return metric.removeprefix(_TRANSFER).rstrip("]")
    return ADE20K if metric == "mIoU" else IMAGENET
