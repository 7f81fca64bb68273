"""The tokenizers: a section of the configuration for each, which is its entry.

Adding one is its file, which brings a `PatchEncoder` or a `Tokenizer`, its choices in an options file, and its section
here. Importing this imports no torch: only what an entry calls does.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from models.clip.options import ClipOptions
from models.encoders.options import EncoderOptions, RawPatchOptions
from models.options import Options
from models.tokenizers.dalle_options import DalleOptions
from models.vqkd.options import PUBLISHED, VQKDOptions, VQKDSizes

if TYPE_CHECKING:
    from models.encoders.base import PatchEncoder
    from models.tokenizers.base import Tokenizer

    Network = PatchEncoder | Tokenizer


@dataclass(frozen=True)
class TokenizerWords:
    """What is said of a tokenizer wherever its tokens are shown.

    Attributes:
        title: `raw patches`; `adjective`: the same where a noun follows, `raw-patch` tokens.
        method: sentences on what becomes of an image, with `{grid}` and `{vocabulary:,}` in them.
        source: whose method it is; "" says nothing.
        network: what sees an image, where its name is not known.
        ids: of what tokens are ids, a plural.
        paper_pixels: side of the images that it sees in MaPeT's paper; None where that has no such tokens.
        is_baseline: it says what clustering alone gives.
    """

    title: str
    method: str = "Each image becomes {grid} tokens of {vocabulary:,}."
    source: str = ""
    adjective: str = ""
    network: str = ""
    ids: Literal["codes", "centroids"] = "codes"
    paper_pixels: int | None = None
    is_baseline: bool = False

    @property
    def before_a_noun(self) -> str:
        return self.adjective or self.title


@dataclass(frozen=True)
class KnownTokenizer:
    """An entry, in the section of its choices.

    Attributes:
        name: as the configuration's `tokenizer` has it, and the attribute of a token store.
        load: the network with its weights, of its choices, on a device; compiled where that is wanted and can be.
        outline: the same on the meta device, without weights; None where only a file of weights tells its shape.
        files: all that weights and shape are read from; none where nothing is.
        clusters: `load` gives a `PatchEncoder`, whose features k-means clusters; otherwise a `Tokenizer`.
    """

    name: str
    words: TokenizerWords
    load: "Callable[[Any, str, bool], Network]"
    outline: "Callable[[Any], Network | None]"
    files: Callable[[Any], Iterable[Path]]
    clusters: bool = False


def _load_clip(options: ClipOptions, device: str, compiled: bool) -> "Network":
    from models.clip.encoder import load_clip

    return load_clip(options, device=device, compile_trunk=compiled)


def _outline_clip(options: ClipOptions) -> "Network":
    from models.clip.encoder import outline_clip

    return outline_clip(options)


def _clip_files(options: ClipOptions) -> Iterable[Path]:
    from models.clip.weight_files import files_of_weights

    return files_of_weights(options.model, pretrained=options.pretrained)


def _load_vqkd(options: VQKDOptions, device: str, compiled: bool) -> "Network":
    from models.tokenizers.vqkd import load_vqkd

    return load_vqkd(options, device=device, compile_encoder=compiled)


def _outline_vqkd(options: VQKDOptions) -> "Network | None":
    from models.tokenizers.vqkd import outline_vqkd

    return outline_vqkd(options, VQKDSizes()) if options.checkpoint in PUBLISHED else None


def _vqkd_files(options: VQKDOptions) -> Iterable[Path]:
    from models.weights.published_files import published_file

    return [published_file(options.checkpoint, published=PUBLISHED, option="vqkd.checkpoint")]


def _load_dalle(options: DalleOptions, device: str, compiled: bool) -> "Network":
    from models.tokenizers.dalle import load_dalle

    return load_dalle(options, device=device)


def _outline_dalle(options: DalleOptions) -> "Network":
    from models.tokenizers.dalle import outline_dalle

    return outline_dalle(options)


def _load_timm(options: EncoderOptions, device: str, compiled: bool) -> "Network":
    from models.encoders.timm_encoder import load_timm

    return load_timm(options, device=device, compile_network=compiled)


def _outline_timm(options: EncoderOptions) -> "Network":
    from models.encoders.timm_encoder import outline_timm

    return outline_timm(options)


def _timm_files(options: EncoderOptions) -> Iterable[Path]:
    from models.encoders.timm_weights import files_of_weights

    return files_of_weights(options)


def _raw_patches(options: RawPatchOptions, device: str = "cpu", compiled: bool = False) -> "Network":
    from models.encoders.raw_patches import RawPatchEncoder

    return RawPatchEncoder(options).to(device)


_CLUSTERED = "gave {vocabulary:,} centroids, and every patch got the id of its nearest centroid: its token."
_PAPER = "“Learning to Mask and Permute Visual Tokens for Vision Transformer Pre-Training” (Baraldi et al.)"
_KCLIP = TokenizerWords(
    "k-CLIP",
    method=f"A frozen CLIP sees each image as {{grid}} patches. k-means on a sample of the patch features {_CLUSTERED}",
    source=f"k-CLIP, from {_PAPER}",
    network="a CLIP",
    ids="centroids",
    paper_pixels=448,
)
RANDOM = TokenizerWords(
    "random encoder",
    method="A network of CLIP's shape, but with random weights, sees each image as {grid} patches. k-means on a sample "
    f"of the patch features {_CLUSTERED}",
    source=f"k-CLIP, from {_PAPER}, without what CLIP has learned",
    adjective="random-encoder",
    network="a CLIP",
    ids="centroids",
    is_baseline=True,
)
_VQKD = TokenizerWords(
    "VQ-KD",
    method="A Vision Transformer sees each image as {grid} patches and gives each a short vector; the nearest of "
    "{vocabulary:,} codes, by cosine, is the patch's token. Transformer and codes were trained together, so that a "
    "decoder could predict a teacher's features from the codes alone.",
    source="VQ-KD, from “BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers” (Peng et al.)",
    network="a VQ-KD",
    paper_pixels=224,
)
_DALLE = TokenizerWords(
    "DALL-E",
    method="A convolutional network sees each image as {grid} patches and names the most likely of {vocabulary:,} "
    "codes for each: its token. It was trained as the first half of an autoencoder, whose second half draws the image "
    "from the codes.",
    source="the encoder of DALL-E, from “Zero-Shot Text-to-Image Generation” (Ramesh et al.)",
    network="DALL-E's encoder",
    paper_pixels=112,
)
_PIXELS = TokenizerWords(
    "raw patches",
    method=f"Each image is cut into {{grid}} patches. k-means on the pixels of a sample of them {_CLUSTERED}",
    source="vector quantisation, without any network, as in “Vector Quantization” (Gray, 1984)",
    adjective="raw-patch",
    network="pixels",
    ids="centroids",
    is_baseline=True,
)
_KMEANS = TokenizerWords(
    "k-means",
    method="A frozen network sees each image as {grid} patches. k-means on a sample of the patch features "
    f"{_CLUSTERED}",
    source=f"k-CLIP, from {_PAPER}, with another encoder than CLIP",
    network="a frozen encoder",
    ids="centroids",
)


class TokenizerSections(Options):
    """The choices of each tokenizer."""

    clip: Annotated[
        ClipOptions, KnownTokenizer("kclip", _KCLIP, _load_clip, _outline_clip, _clip_files, clusters=True)
    ] = Field(default_factory=ClipOptions)
    """The encoder of k-CLIP; `clip.model=demo` trains the demo's own."""

    vqkd: Annotated[VQKDOptions, KnownTokenizer("vqkd", _VQKD, _load_vqkd, _outline_vqkd, _vqkd_files)] = Field(
        default_factory=VQKDOptions
    )
    """The VQ-KD; `vqkd.checkpoint=fit` trains one on these images, as `fit_vqkd` says."""

    dalle: Annotated[
        DalleOptions, KnownTokenizer("dalle", _DALLE, _load_dalle, _outline_dalle, lambda it: [Path(it.checkpoint)])
    ] = Field(default_factory=DalleOptions)
    """DALL-E's encoder, used with `tokenizer=dalle`."""

    pixels: Annotated[
        RawPatchOptions, KnownTokenizer("pixels", _PIXELS, _raw_patches, _raw_patches, lambda _: (), clusters=True)
    ] = Field(default_factory=RawPatchOptions)
    """The patches that k-means sees with `tokenizer=pixels`."""

    encoder: Annotated[
        EncoderOptions, KnownTokenizer("kmeans", _KMEANS, _load_timm, _outline_timm, _timm_files, clusters=True)
    ] = Field(default_factory=EncoderOptions)
    """The frozen encoder whose features k-means clusters with `tokenizer=kmeans`."""
