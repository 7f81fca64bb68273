"""The choices of each evaluation protocol, which need no torch; the protocols themselves have a file each."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from models.heads.segmenter_options import SegmenterOptions
from models.options import Options, PathText, Seed
from pipeline.data.segmentation_options import SegmentationTransformOptions
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.fingerprint import SETTING
from pipeline.stages.evaluate.caption_options import ClassNames, ClassOrder, Templates
from pipeline.training.options import TrainingOptions

TRANSFER_SETS = ("stanford_cars", "food101", "fgvc_aircraft", "folder")
_POLICIES = ("", "rand-m9-mstd0.5", "rand-m9-mstd0.5-inc1")  # of RandAugment, that recipes here ask for


class EvaluationOptions(Options):
    """What every protocol can be told."""

    seed: Seed = 0
    """Of new weights, order of the images and augmentation."""


class LabelledOptions(EvaluationOptions):
    """Which labelled images a protocol uses."""

    train_split: str = "train"
    """Split that heads are trained on."""

    val_split: str = "val"
    """Split that the scores are of."""


def _minutes() -> TrainingOptions:
    return TrainingOptions(
        epochs=50,
        batch_size=1024,
        peak_learning_rate=1e-3,
        lowest_learning_rate=0.0,
        warmup_epochs=0,
        weight_decay=1e-4,
        gradient_clip=None,
        precision="fp32",
        validation_epochs=50,
    )


class FrozenFeaturesOptions(LabelledOptions):
    """Probes of cached features."""

    training: TrainingOptions = Field(default_factory=_minutes)
    """Of the linear heads."""

    neighbours: int = Field(default=20, ge=1, le=2**20)
    """k of k-NN."""

    temperature: float = Field(default=0.07, gt=0, le=1e6)
    """t of k-NN."""

    crop_pct: float = Field(default=0.875, ge=0.1, le=1)
    """Share of the shorter side that is seen."""


Factor = Annotated[float, Field(gt=0, le=1e6)]


def _of_the_paper() -> TrainingOptions:
    return TrainingOptions(
        epochs=50,
        batch_size=1024,
        peak_learning_rate=4e-3,
        lowest_learning_rate=0.0,
        warmup_epochs=0,
        weight_decay=1e-4,
        gradient_clip=None,
    )


class LinearProbeOptions(LabelledOptions):
    """Linear probes; defaults are the paper's."""

    training: TrainingOptions = Field(default_factory=_of_the_paper)
    """For how long; `peak_learning_rate` is that of the paper's reading."""

    learning_rate_factors: tuple[Factor, ...] = Field(default=(0.25, 1.0, 4.0), min_length=1)
    """Heads are trained with so many times `training.peak_learning_rate`; 1 must be among them."""

    all_blocks: bool = True
    """Heads on every block, or on the last one only."""

    smallest_crop: float = Field(default=0.08, gt=0, le=1)
    """Least share of the image that a random crop shows in training."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """Chance of mirroring the image in training."""

    crop_pct: float = Field(default=0.875, ge=0.1, le=1)
    """Share of the shorter side that evaluation crops: 224 of 256."""

    @field_validator("learning_rate_factors")
    @classmethod
    def _has_the_given_rate(cls, factors: tuple[float, ...]) -> tuple[float, ...]:
        if 1 not in factors:
            raise ValueError("1 must be among them, for the paper's reading")
        return factors


def _table_9() -> TrainingOptions:
    return TrainingOptions(
        epochs=100,
        batch_size=1024,
        peak_learning_rate=5e-4,
        lowest_learning_rate=1e-6,
        warmup_epochs=20,
        gradient_clip=None,
    )


def _is_known_to_timm(policy: str) -> bool:
    from timm.data import create_transform  # which imports torch: for other policies than our own

    # timm says nothing of a section that it does not know when no number is in it.
    sections = policy.split("-")[1:]
    try:
        create_transform(32, is_training=True, auto_augment=policy)
    except (AssertionError, KeyError, ValueError):
        return False
    return all(any(map(str.isdigit, section)) or section.startswith("t") for section in sections)


class FineTuneOptions(LabelledOptions):
    """Fine-tuning; defaults are Table 9's for ViT-B."""

    training: TrainingOptions = Field(default_factory=_table_9)
    """For how long and how fast."""

    layer_decay: float = Field(default=0.65, gt=0, le=1)
    """Each block learns so much slower than the one above it; 1: all learn alike (ViT-T)."""

    drop_path_rate: float = Field(default=0.1, ge=0, lt=1)
    """Stochastic depth of the last block, growing linearly from 0."""

    mixup: float = Field(default=0.8, ge=0, le=1000)
    """Alpha of mixup; 0: none."""

    cutmix: float = Field(default=1.0, ge=0, le=1000)
    """Alpha of CutMix; 0: none. Which of the two a batch gets is an even chance."""

    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing."""

    auto_augment: str = "rand-m9-mstd0.5"
    """timm's name of the RandAugment policy, the released one (without `inc1`); empty: none."""

    erasing: float = Field(default=0.25, ge=0, le=1)
    """Chance of erasing a rectangle of the image, after mixing."""

    repeats: int = Field(default=1, ge=1, le=100)
    """Repeated augmentation: how often a step takes each of its images, every time augmented otherwise; an epoch then
    sees so many times fewer of them."""

    smallest_crop: float = Field(default=0.08, gt=0, le=1)
    """Least share of the image that a random crop shows."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """Chance of mirroring the image."""

    crop_pct: float = Field(default=0.9, ge=0.1, le=1)
    """Share of the shorter side that evaluation crops."""

    train_fraction: float = Field(default=1.0, gt=0, le=1)
    """Part of each class's training images that is used."""

    @field_validator("auto_augment")
    @classmethod
    def _is_a_policy(cls, policy: str) -> str:
        if policy not in _POLICIES and not _is_known_to_timm(policy):
            raise ValueError("expected a policy of timm, such as rand-m9-mstd0.5, augmix-m5-w4, original, or nothing")
        return policy


def from_scratch() -> FineTuneOptions:
    """Return DeiT's recipe for training on ImageNet from random weights (arXiv:2012.12877, Table 9), at steps of
    1024 images.

    Left out are its ten epochs of cooldown. The network stays the one that is pre-trained here: DeiT's has no
    LayerScale, and reads the class token.
    """
    training = TrainingOptions(
        epochs=300, batch_size=1024, peak_learning_rate=1e-3, lowest_learning_rate=1e-5, warmup_epochs=5,
        gradient_clip=None,
    )  # fmt: skip
    return FineTuneOptions(
        training=training, layer_decay=1.0, auto_augment="rand-m9-mstd0.5-inc1", repeats=3, crop_pct=0.875
    )


def _table_10() -> TrainingOptions:
    return TrainingOptions(
        epochs=None,
        steps=160_000,
        batch_size=16,
        peak_learning_rate=5e-5,
        decay="linear",
        lowest_learning_rate=0.0,
        first_learning_rate=5e-11,
        warmup_epochs=0,
        warmup_steps=1_500,
        gradient_clip=None,
        validation_epochs=10,
    )


class SegmentationOptions(EvaluationOptions):
    """Semantic segmentation; defaults are Table 10's for ViT-B on ADE20K."""

    path: PathText = Field(default="", json_schema_extra=SETTING)
    """Root of the images, laid out as ADEChallengeData2016: images/ and annotations/, each with training/ and
    validation/; ~ is expanded. Where it lies does not change a result."""

    identity: Literal["listing", "content"] = Field(default="listing", json_schema_extra=SETTING)
    """What makes two data sets the same one: names and sizes of their files, or every byte, as `images.identity`."""

    classes: int = Field(default=150, ge=1, le=255)
    """How many classes the annotations have, without "other" (their 0)."""

    label_zero: Literal["", "other", "class"] = ""
    """What the annotations' label 0 is. other: ADE20K's, classes count from 1; class: the first class, and 255 is
    "other". Empty: other, but refused where the labels that occur fit both."""

    training: TrainingOptions = Field(default_factory=_table_10)
    """For how long and how fast."""

    layer_decay: float = Field(default=0.75, gt=0, le=1)
    """Each block learns so much slower than the one above it; 1: all learn alike."""

    drop_path_rate: float = Field(default=0.15, ge=0, lt=1)
    """Stochastic depth of the last block, growing linearly from 0."""

    network: SegmenterOptions = Field(default_factory=SegmenterOptions)
    """What is built on the backbone."""

    transforms: SegmentationTransformOptions = Field(default_factory=SegmentationTransformOptions)
    """What happens to an image before the network sees it."""

    stride: int = Field(default=341, ge=1, le=4096)
    """Pixels between the windows that a whole image is judged by."""

    @model_validator(mode="after")
    def _no_gaps(self) -> "SegmentationOptions":
        if self.stride > self.network.image_size:
            raise ValueError(f"stride {self.stride} leaves pixels out between windows of {self.network.image_size}")
        return self


class TransferOptions(LinearProbeOptions):
    """The linear probe on other images than those of the pre-training; data sets without a path are left out."""

    stanford_cars: PathText = Field(default="", json_schema_extra=SETTING)
    """Folder of Stanford Cars as torchvision expects it."""

    food101: PathText = Field(default="", json_schema_extra=SETTING)
    """Folder of Food-101 as torchvision expects it."""

    fgvc_aircraft: PathText = Field(default="", json_schema_extra=SETTING)
    """Folder of FGVC-Aircraft as torchvision expects it; trained on `trainval`."""

    folder: PathText = Field(default="", json_schema_extra=SETTING)
    """Any other data set: class folders below `train/` and `val/`."""

    def sources(self) -> Iterator[tuple[str, ImageSourceOptions]]:
        """Yield the name and the source of every data set that has a path."""
        for kind in TRANSFER_SETS:
            if path := getattr(self, kind):
                yield kind, ImageSourceOptions.model_validate({"kind": kind, "path": path})


def _default_training() -> TrainingOptions:
    return TrainingOptions(epochs=50, batch_size=1024, peak_learning_rate=1e-3, warmup_epochs=5)


class TokensAsInputOptions(LabelledOptions):
    """A classifier of tokens; the paper does not say how its own were trained."""

    network: Literal["mlp", "vit"] = "mlp"
    """`mlp`: embedding, linear, ReLU, mean, linear; `vit`: ViT-T on embedded tokens."""

    width: int = Field(default=192, ge=1, le=65_536)
    """D of the MLP; the ViT has its own 192."""

    training: TrainingOptions = Field(default_factory=_default_training)
    """For how long and how fast."""


class ZeroShotOptions(LabelledOptions):
    """Which captions images are compared with; nothing is trained, so `train_split` and `seed` are not used."""

    templates: Templates = "openai"
    """openai: OpenAI's 80 captions for ImageNet; simple: 7 of them; demo: those of the demo's own CLIP, and its class
    words; or a list of captions with {} for the class name, such as ["a photo of {}, a type of food."]."""

    class_names: ClassNames = "auto"
    """auto: the image index's, with spaces for underscores, and for ImageNet's 1000 wnids OpenAI's; imagenet: OpenAI's
    in any case; or a list, or the path of a text file with one name a line, in the order of the classes."""

    class_order: ClassOrder = ""
    """The order of `class_names` where classes are called by numbers, which are sorted as words (0, 1, 10, ...): index:
    that of the image index; number: 0, 1, 2, ... Empty: asked."""
