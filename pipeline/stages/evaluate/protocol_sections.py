"""The evaluation protocols: a section of the configuration for each, which is its entry.

Adding one is its file, which ends with a `Protocol`, its choices in `evaluation_options.py`, and its section here,
whose name is the protocol's. Importing this imports no torch: only `load()` does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from models.options import Options
from pipeline.stages.evaluate.evaluation_options import (
    FineTuneOptions,
    FrozenFeaturesOptions,
    LinearProbeOptions,
    SegmentationOptions,
    TokensAsInputOptions,
    TransferOptions,
    ZeroShotOptions,
    from_scratch,
)

if TYPE_CHECKING:
    from pipeline.data.segmentation_files import SegmentationFiles
    from pipeline.stages.evaluate.protocol import Protocol
    from storage.layout import Layout


@dataclass(frozen=True)
class KnownProtocol:
    """What of the protocol of a section is to be known before it runs.

    Attributes:
        load: imports the protocol.
        judges: a backbone, or without one the tokens of the images, or the CLIP that made them.
        images: the protocol's own images, identified, where it has some; None: it takes labelled ones of an index.
    """

    load: "Callable[[], Protocol]"
    judges: Literal["backbone", "tokens", "clip"] = "backbone"
    images: "Callable[[Any, Layout], SegmentationFiles] | None" = None


def _frozen_features() -> "Protocol":
    from pipeline.stages.evaluate.frozen_features import FROZEN_FEATURES

    return FROZEN_FEATURES


def _linear_probe() -> "Protocol":
    from pipeline.stages.evaluate.linear_probe import LINEAR_PROBE

    return LINEAR_PROBE


def _fine_tune() -> "Protocol":
    from pipeline.stages.evaluate.fine_tune import FINE_TUNE

    return FINE_TUNE


def _segmentation() -> "Protocol":
    from pipeline.stages.evaluate.segmentation import SEGMENTATION

    return SEGMENTATION


def _segmented(options: SegmentationOptions, layout: "Layout") -> "SegmentationFiles":
    from pipeline.stages.evaluate.segmented_images import identified_files

    return identified_files(options, layout)


def _transfer() -> "Protocol":
    from pipeline.stages.evaluate.transfer import TRANSFER

    return TRANSFER


def _tokens_as_input() -> "Protocol":
    from pipeline.stages.evaluate.tokens_as_input import TOKENS_AS_INPUT

    return TOKENS_AS_INPUT


def _zero_shot() -> "Protocol":
    from pipeline.stages.evaluate.zero_shot import ZERO_SHOT

    return ZERO_SHOT


def _token_vit() -> TokensAsInputOptions:
    return TokensAsInputOptions(network="vit")


class ProtocolSections(Options):
    """The choices of each protocol."""

    frozen_features: Annotated[FrozenFeaturesOptions, KnownProtocol(_frozen_features)] = Field(
        default_factory=FrozenFeaturesOptions
    )
    """k-NN and linear heads on features that are computed once."""

    linear_probe: Annotated[LinearProbeOptions, KnownProtocol(_linear_probe)] = Field(
        default_factory=LinearProbeOptions
    )
    """Linear heads on augmented images, as the paper."""

    fine_tune: Annotated[FineTuneOptions, KnownProtocol(_fine_tune)] = Field(default_factory=FineTuneOptions)
    """All weights learn the labels."""

    scratch: FineTuneOptions = Field(default_factory=from_scratch)
    """What takes the place of `fine_tune` for a backbone of random weights. The paper gives no recipe; this is DeiT's:
    no layer decay, a rate of 5e-4 for every 512 images of a step."""

    segmentation: Annotated[SegmentationOptions, KnownProtocol(_segmentation, images=_segmented)] = Field(
        default_factory=SegmentationOptions
    )
    """All weights learn a class for every pixel."""

    transfer: Annotated[TransferOptions, KnownProtocol(_transfer)] = Field(default_factory=TransferOptions)
    """The linear probe on other data sets."""

    tokens_as_input: Annotated[TokensAsInputOptions, KnownProtocol(_tokens_as_input, judges="tokens")] = Field(
        default_factory=TokensAsInputOptions
    )
    """A classifier that sees tokens alone."""

    tokens_as_input_vit: Annotated[TokensAsInputOptions, KnownProtocol(_tokens_as_input, judges="tokens")] = Field(
        default_factory=_token_vit
    )
    """The same with a Vision Transformer."""

    zero_shot: Annotated[ZeroShotOptions, KnownProtocol(_zero_shot, judges="clip")] = Field(
        default_factory=ZeroShotOptions
    )
    """The CLIP that made the tokens classifies by captions."""
