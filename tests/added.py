"""A sixth objective, a fifth tokenizer and a ninth protocol, each as its author would write it; and `mapet` with them.

    python -m tests.added COMMAND...

An author adds the entry to a file of the package. Here that happens when the process begins, before anything reads it.
"""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from models import objectives
from models.encoders.preprocessing import Preprocessing
from models.objectives.mim import MIM
from models.objectives.options import MIMOptions
from models.options import Options
from models.tokenizers import sections
from models.tokenizers.base import Tokenizer
from models.tokenizers.sections import KnownTokenizer, TokenizerWords
from pipeline.stages.evaluate import protocol_sections
from pipeline.stages.evaluate.evaluation_options import LabelledOptions
from pipeline.stages.evaluate.protocol_sections import KnownProtocol
from storage.image_index import ImageIndex

if TYPE_CHECKING:
    from pipeline.stages.evaluate.protocol import Protocol


class ReversedOptions(MIMOptions):
    """Masked image modelling of tokens that count down."""


class ReversedMIM(MIM):
    """MIM of the tokens K - 1 - t."""

    title = "Reversed MIM"
    colours = ("#105060", "#60a0b0")
    task = "all at once and counted from the end, from the {context} shown"

    def forward(self, images: Tensor, tokens: Tensor, seeds: Tensor) -> Any:
        return super().forward(images, self.vocabulary - 1 - tokens.long(), seeds)


class BrightnessOptions(Options):
    """How bright patches are."""

    levels: int = Field(default=16, ge=2, le=256)
    """Of brightness, each a token."""


class Brightness(Tokenizer):
    """The mean of a patch's 8-bit numbers, in levels."""

    def __init__(self, options: BrightnessOptions) -> None:
        super().__init__()
        self.name, self.vocabulary, self.grid, self.precision = "brightness", options.levels, (4, 4), "fp32"
        self.preprocessing = Preprocessing(64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.digest = f"brightness {options.levels}"

    def forward(self, images: Tensor) -> Tensor:
        means = torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1), self.grid)
        return (means / 256 * self.vocabulary).long().flatten(1)


def _brightness(options: BrightnessOptions, device: str = "cpu", compiled: bool = False) -> Brightness:
    return Brightness(options).to(device)


_WORDS = TokenizerWords(
    "patch brightness",
    method="Each of {grid} patches gets one of {vocabulary:,} levels of brightness.",
    source="a thermometer",
)


class TokenizerSections(sections.TokenizerSections):
    """Those of the package, and one more."""

    brightness: Annotated[
        BrightnessOptions, KnownTokenizer("brightness", _WORDS, _brightness, _brightness, lambda _: ())
    ] = Field(default_factory=BrightnessOptions)
    """Levels of brightness."""


def _majority() -> "Protocol":
    from pipeline.stages.evaluate.protocol import EvaluationJob, Metric, Protocol
    from pipeline.stages.evaluate.scores import score, write_scores

    def run(job: EvaluationJob, processes: Any, reporter: Any) -> dict[str, Any]:
        splits, labels = job.splits(), torch.from_numpy(ImageIndex.read(job.images.path).labels)
        common = labels[splits.train].mode().values
        right = (labels[splits.val] == common).numpy()
        processes.by_first(lambda: write_scores(job.folder, [score("share", right, "guessed")], {"share": right}))
        return {}

    return Protocol("Majority", (Metric("share", "majority_share", "Majority class, share"),), run)


class ProtocolSections(protocol_sections.ProtocolSections):
    """Those of the package, and one more."""

    majority: Annotated[LabelledOptions, KnownProtocol(_majority)] = Field(default_factory=LabelledOptions)
    """How often the most frequent class is right."""


if __name__ == "__main__":
    objectives.OBJECTIVES["reversed"] = objectives.KnownObjective(ReversedOptions, lambda: ReversedMIM)
    sections.TokenizerSections = TokenizerSections  # type: ignore[misc]
    protocol_sections.ProtocolSections = ProtocolSections  # type: ignore[misc]
    from pipeline.commands.main import main

    main(sys.argv[1:])
