"""The choices of the stage `fit_vqkd`."""

from dataclasses import dataclass

from pydantic import Field

from models.clip.options import ClipOptions
from models.options import Options, Seed
from models.vqkd.options import VQKDCodebookOptions, VQKDNetworkOptions
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.inputs import Images, Network
from pipeline.training.options import TrainingOptions

FIT = "fit"  # what `vqkd.checkpoint` says to have one trained
COUNTED_IMAGES = 50_000  # whose tokens tell how evenly the vocabulary is used: 1,200 for each of 8192 codes


def _published() -> TrainingOptions:
    return TrainingOptions(
        epochs=100,
        batch_size=512,
        peak_learning_rate=2e-4,  # 5e-5 for every 128 images of a step
        decay="cosine_after_warmup",
        first_learning_rate=0.0,
        warmup_epochs=10,
        weight_decay=1e-4,
        betas=(0.9, 0.99),
        gradient_clip=None,
    )


def _openai_vit() -> ClipOptions:
    return ClipOptions(model="ViT-B-16-quickgelu", pretrained="openai")


class FitVQKDOptions(Options):
    """A VQ-KD, its teacher, and how it is trained; defaults are BEiT v2's."""

    network: VQKDNetworkOptions = Field(default_factory=VQKDNetworkOptions)
    """What is trained."""

    codebook: VQKDCodebookOptions = Field(default_factory=VQKDCodebookOptions)
    """How its codes follow."""

    teacher: ClipOptions = Field(default_factory=_openai_vit)
    """The CLIP whose patch features are learned from; OpenAI's ViT-B/16, as published."""

    training: TrainingOptions = Field(default_factory=_published)
    """For how long and how fast. The published rate is 5e-5 for every 128 images of a step."""

    smallest_crop: float = Field(default=0.08, gt=0, le=1)
    """Least share of the image that a random crop shows."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """Chance of mirroring the image."""

    train_split: str = "train"
    """Split whose images are trained on."""

    val_split: str = "val"
    """Split on which the loss is measured too; it may be empty."""

    start_images: int = Field(default=2048, ge=1, le=2**31 - 1)
    """Training images, evenly spread, on whose patches the k-means runs that the codes start from; all where there are
    fewer. 2048 of 196 patches are 49 for each of 8192 codes."""

    seed: Seed = 0
    """Of initial weights and codes, order of the images, crops and mirroring."""


@dataclass(frozen=True)
class FitVQKDFields:
    """The fields of the stage `fit_vqkd`, which each process that trains is handed.

    Attributes:
        teacher: the CLIP of the options, or the demo's.
    """

    options: FitVQKDOptions
    teacher: Network[ClipOptions]
    images: Images
    decoding: DecodingOptions
