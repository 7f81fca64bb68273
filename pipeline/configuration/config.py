"""Configurations: one section per component, each section's class stands in that component's file."""

from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from models.clip.demo_options import DemoClipOptions
from models.kmeans.options import CodebookOptions
from models.objectives import OBJECTIVES
from models.options import Options, Seed
from models.tokenizers.registry import ComparedName, TokenizerName
from models.tokenizers.sections import TokenizerSections
from models.vit.options import BackboneOptions
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.demo_options import DemoImagesOptions, DemoSegmentationOptions
from pipeline.data.source_options import ImageSourceOptions
from pipeline.encoding.feature_options import FeatureOptions
from pipeline.stages.evaluate.protocol_sections import ProtocolSections
from pipeline.stages.evaluate.protocols import EvaluateOptions, ProtocolName
from pipeline.training.options import TrainingOptions
from pipeline.training.pretraining_options import ObjectiveName, PretrainOptions
from pipeline.training.vqkd_options import FitVQKDOptions


class _Chosen(Options):
    images: ImageSourceOptions = Field(default_factory=ImageSourceOptions)
    """Where the images come from."""

    decoding: DecodingOptions = Field(default_factory=DecodingOptions)
    """How they become pixels."""

    tokenizer: TokenizerName = "kclip"
    """What makes their tokens. `kclip`: k-means on the patch features of a CLIP (sections `clip`, `features`,
    `codebook`); `kmeans`: the same with any frozen encoder of timm (`encoder`); `vqkd`: BEiT v2's VQ-KD, published or
    trained here (`vqkd`, `fit_vqkd`); `dalle`: DALL-E's autoencoder (`dalle`); `pixels`: k-means on the patches
    themselves, a baseline (`pixels`, `features`, `codebook`)."""


class KClipBuildConfig(TokenizerSections, _Chosen):
    """Everything that `kclip-build` can be told, from images to tokens."""

    features: FeatureOptions = Field(default_factory=FeatureOptions)
    """Which patch features k-means sees."""

    codebook: CodebookOptions = Field(default_factory=CodebookOptions)
    """How they are clustered."""

    fit_vqkd: FitVQKDOptions = Field(default_factory=FitVQKDOptions)
    """How a VQ-KD is trained; its `teacher.model=demo` is the demo's own CLIP."""

    demo_images: DemoImagesOptions = Field(default_factory=DemoImagesOptions)
    """The embedded demo's pictures; used with `images.kind=demo`."""

    demo_clip: DemoClipOptions = Field(default_factory=DemoClipOptions)
    """The embedded demo's CLIP; used with `clip.model=demo`."""


def _section(name: str, options_class: type[Options]) -> tuple[type[Options], Any]:
    described = f"{options_class.__doc__} Used with `pretrain.objective={name}`."
    return options_class, Field(default_factory=options_class, description=described)


# A section per objective, so that a new one is its file and its entry in OBJECTIVES and nothing here.
ObjectiveSections = create_model(
    "ObjectiveSections",
    __base__=Options,
    **{name: _section(name, known.options_class) for name, known in OBJECTIVES.items()},  # type: ignore[call-overload]
)


class PretrainConfig(KClipBuildConfig):
    """Everything that `pretrain` can be told: how the tokens are made, and how a backbone learns to predict them."""

    backbone: BackboneOptions = Field(default_factory=BackboneOptions)
    """What is trained."""

    pretrain: PretrainOptions = Field(default_factory=PretrainOptions)
    """With which objective, on which images."""

    objectives: ObjectiveSections = Field(default_factory=ObjectiveSections)
    """The options of each objective; those of `pretrain.objective` are used."""

    training: TrainingOptions = Field(default_factory=TrainingOptions)
    """For how long and how fast."""


class _Evaluated(PretrainConfig):
    evaluate: EvaluateOptions = Field(default_factory=EvaluateOptions)
    """Which protocols."""


class EvaluateConfig(ProtocolSections, _Evaluated):
    """Everything that `evaluate` can be told: the pre-training that is evaluated (built or found), and how."""

    demo_segmentation: DemoSegmentationOptions = Field(default_factory=DemoSegmentationOptions)
    """The embedded demo's segmented pictures; used with `images.kind=demo`."""


class GridOptions(Options):
    """What is compared: every combination of what is listed, each evaluated by all of `evaluate.protocols`."""

    title: str = ""
    """What the report calls this comparison: the name of the preset."""

    tokenizers: tuple[ComparedName, ...] = Field(default=("kclip",), min_length=1)
    """Whose tokens are learned; the field `tokenizer` is not looked at. `random`, which it does not know, is k-CLIP
    with an encoder of random weights. The report describes the build of the first."""

    tokens_only: tuple[ComparedName, ...] = ()
    """Whose tokens are judged as a classifier's input beside those above, without a backbone that learns them."""

    backbones: tuple[Literal["vit_tiny", "vit_small", "vit_base"], ...] = ()
    """Each is trained with the cutting point, the fine-tuning epochs and learning rate that the paper gives it. Empty:
    `backbone`, with all sections as they are."""

    objectives: tuple[ObjectiveName, ...] = ("mim", "pim", "mapet")
    """How they are pre-trained; `pretrain.objective` is not looked at. None: nothing is pre-trained."""

    cutting_points: tuple[Annotated[int, Field(ge=0, le=2**20)], ...] = ()
    """PIM and MaPeT are pre-trained with each of these (Table 6). Empty: as their sections say."""

    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    """Everything is trained once with each of these; `pretrain.seed` and those of the protocols are not looked at."""

    scratch: bool = True
    """Evaluate backbones that start from random weights beside the pre-trained ones."""

    scratch_protocols: tuple[ProtocolName, ...] = ("frozen_features", "fine_tune", "segmentation")
    """By which of `evaluate.protocols`: all weights learn by a recipe of their own (section `scratch`; segmentation
    without layer decay), and k-NN and heads on random features say what is had for nothing."""


class ReproduceConfig(EvaluateConfig):
    """Several pre-trainings that differ in what the grid says and share everything else, all evaluated alike."""

    grid: GridOptions = Field(default_factory=GridOptions)
    """What is compared."""

    full: bool = False
    """Pre-train with every objective that there is, whatever `grid.objectives` says."""

    @property
    def compared(self) -> GridOptions:
        """The grid, with every objective if `full` is set."""
        return self.grid.model_copy(update={"objectives": tuple(OBJECTIVES)}) if self.full else self.grid
