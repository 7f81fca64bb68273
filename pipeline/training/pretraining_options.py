"""The choices of the stage `pretrain`."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from models.objectives import OBJECTIVES
from models.options import Options, PathText, Seed
from models.vit.options import BackboneOptions
from pipeline.data.decoding_options import DecodePreset
from pipeline.data.inputs import Images
from pipeline.engine.fingerprint import SETTING
from pipeline.engine.stage import Source
from pipeline.training.options import TrainingOptions

ObjectiveName = Literal[*OBJECTIVES]  # type: ignore[valid-type]


class PretrainOptions(Options):
    """What is learned from which images."""

    objective: ObjectiveName = "mapet"
    """What is hidden and predicted; its own options are those of `objectives.<name>`."""

    tokens: PathText = Field(default="", json_schema_extra=SETTING)
    """Folder of a `tokenize_images` artifact to train on; empty: the tokens that the sections above describe, built
    where they are not there yet."""

    train_split: str = "train"
    """Split whose images are trained on."""

    val_split: str = "val"
    """Split on which the loss is measured too; it may be empty."""

    colour_jitter: float = Field(default=0.4, ge=0, le=1)
    """Strength of random brightness, contrast and saturation. Nothing moves a pixel: tokens would no longer fit."""

    decoding: DecodePreset = "fast"
    """How images are resized: `fast` (8-bit, half the time) or `exact` (as the tokens' encoder saw them)."""

    seed: Seed = 0
    """Of initial weights, order of the images, corruption, stochastic depth and jitter."""


@dataclass(frozen=True)
class PretrainFields:
    """The fields of the stage `pretrain`, which each process that trains is handed.

    Attributes:
        objective: the options of `options.objective`.
        images: those that the tokens were made for.
        squares: the stage that keeps the images' squares, if they are kept.
    """

    options: PretrainOptions
    objective: Options
    backbone: BackboneOptions
    training: TrainingOptions
    images: Images
    tokens: Source
    squares: tuple[Source, ...] = ()
