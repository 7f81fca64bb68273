"""From images to tokens, by any tokenizer.

    kclip   index_images -> extract_features -> fit_codebook -> tokenize_images
    pixels  the same, with the pixels of the patches in place of a CLIP's features
    vqkd    index_images [-> fit_vqkd] -> tokenize_images
    dalle   index_images -> tokenize_images

The embedded demo draws its images before (`make_demo_images`), and trains its CLIP where one is wanted
(`train_demo_clip`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from models.clip import LOCAL_DIR, ClipOptions
from pipeline.config import KClipBuildConfig
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.extract_features import extract_features
from pipeline.fit_codebook import fit_codebook
from pipeline.fit_vqkd import CHECKPOINT, FIT, fit_vqkd
from pipeline.index_images import index_images
from pipeline.make_demo_images import make_demo_images
from pipeline.networks import EncoderOptions
from pipeline.tokenize_images import tokenize_images
from pipeline.train_demo_clip import train_demo_clip
from pipeline.wiring.base import Chain, ExpectedCall, Stage
from storage.artifact import Artifact

TOKEN_STAGES: tuple[Stage, ...] = (
    make_demo_images,
    index_images,
    train_demo_clip,
    extract_features,
    fit_codebook,
    fit_vqkd,
    tokenize_images,
)
DEMO = "demo"  # a CLIP that is trained on the spot


@dataclass(frozen=True)
class IndexedImages:
    """An image index, and where the images themselves are."""

    images: Artifact
    source: ImageSourceOptions


@dataclass(frozen=True)
class TokenizedImages(IndexedImages):
    """The same with their tokens, and the CLIP whose features were clustered (None: of another tokenizer, or given)."""

    tokens: Artifact
    clip: ClipOptions | None = None


def token_calls(config: KClipBuildConfig, *, variant: str = "") -> tuple[ExpectedCall, ...]:
    """Those of `build_tokens`, in the order in which they are made."""
    shared: list[Stage] = [make_demo_images] if config.images.kind == "demo" else []
    shared.append(index_images)
    if any(clip.model == DEMO for clip in clips_of(config)):
        shared.append(train_demo_clip)
    own: dict[str, list[Stage]] = {
        "kclip": [extract_features, fit_codebook],
        "pixels": [extract_features, fit_codebook],
        "vqkd": [fit_vqkd] if config.vqkd.checkpoint == FIT else [],
        "dalle": [],
    }
    stages = [*own[config.tokenizer], tokenize_images]
    calls = [ExpectedCall(stage.__name__) for stage in shared]
    for stage in stages:
        name = f"{stage.__name__}-{variant}" if variant else stage.__name__
        calls.append(ExpectedCall(name, config if stage is fit_vqkd else None))
    return tuple(calls)


def clips_of(config: KClipBuildConfig) -> Iterator[ClipOptions]:
    """Those that a build uses."""
    if config.tokenizer == "kclip":
        yield config.clip
    if config.tokenizer == "vqkd" and config.vqkd.checkpoint == FIT:
        yield config.fit_vqkd.teacher


def find_images(config: KClipBuildConfig, run: Chain) -> IndexedImages:
    """Draw the demo's images if they are wanted, and index the images."""
    source = config.images
    if source.kind == "demo":
        pictures = run(make_demo_images, config.demo_images)
        source = source.model_copy(update={"kind": "folder", "path": str(pictures.path)})
    return IndexedImages(run(index_images, source), source)


def build_tokens(config: KClipBuildConfig, run: Chain, *, variant: str = "") -> TokenizedImages:
    """All stages up to the tokens of `config.tokenizer`. `variant`: of the tokenizer, where a run has several."""
    found = find_images(config, run)
    named: dict[str, Any] = {"variant": variant, "decoding": config.decoding}
    named |= {"images": found.images, "source": found.source}
    clip: ClipOptions | None = None
    if config.tokenizer == "kclip":
        clip = _at_hand(config.clip, config, found, run)
        tokens = _clustered(clip, config, run, named)
    elif config.tokenizer == "pixels":
        tokens = _clustered(config.pixels, config, run, named)
    elif config.tokenizer == "vqkd":
        tokens = _of_vqkd(config, found, run, named)
    else:
        tokens = run(tokenize_images, config.dalle, **named)
    return TokenizedImages(found.images, found.source, tokens, clip)


def _clustered(encoder: EncoderOptions, config: KClipBuildConfig, run: Chain, named: dict[str, Any]) -> Artifact:
    features = run(extract_features, config.features, encoder=encoder, **named)
    codebook = run(fit_codebook, config.codebook, features=features, variant=named["variant"])
    return run(tokenize_images, encoder, codebook=codebook, features=features, **named)


def _of_vqkd(config: KClipBuildConfig, found: IndexedImages, run: Chain, named: dict[str, Any]) -> Artifact:
    chosen = config.vqkd
    if chosen.checkpoint == FIT:
        teacher = _at_hand(config.fit_vqkd.teacher, config, found, run)
        made = run(fit_vqkd, config.fit_vqkd.model_copy(update={"teacher": teacher}), **named)
        its_own = {"checkpoint": str(made.path / CHECKPOINT), "image_size": config.fit_vqkd.network.image_size}
        chosen = chosen.model_copy(update=its_own)
    return run(tokenize_images, chosen, **named)


def _at_hand(clip: ClipOptions, config: KClipBuildConfig, found: IndexedImages, run: Chain) -> ClipOptions:
    """The CLIP itself, or for the demo's the one that is trained now."""
    if clip.model != DEMO:
        return clip
    trained = run(train_demo_clip, config.demo_clip, images=found.images, source=found.source)
    return clip.model_copy(update={"model": f"{LOCAL_DIR}{trained.path}"})
