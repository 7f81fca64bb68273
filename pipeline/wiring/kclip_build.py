"""From images to k-CLIP tokens.

    make_demo_images -> index_images -> train_demo_clip -> extract_features -> fit_codebook -> tokenize_images -> report

(the first and third only for the embedded demo)
"""

from dataclasses import dataclass
from typing import Any

from models.clip import ClipOptions
from pipeline.config import KClipBuildConfig
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.extract_features import extract_features
from pipeline.fit_codebook import fit_codebook
from pipeline.index_images import index_images
from pipeline.make_demo_images import make_demo_images
from pipeline.report.kclip_report import report
from pipeline.tokenize_images import tokenize_images
from pipeline.train_demo_clip import train_demo_clip
from pipeline.wiring.base import Chain, ExpectedCall, FlowResult, RunStage, Stage, run_directly
from pipeline.workspace import Workspace
from storage.artifact import Artifact

TOKEN_STAGES: tuple[Stage, ...] = (
    make_demo_images,
    index_images,
    train_demo_clip,
    extract_features,
    fit_codebook,
    tokenize_images,
)
_OF_A_TOKENIZER = (extract_features, fit_codebook, tokenize_images)


@dataclass(frozen=True)
class IndexedImages:
    """An image index, and where the images themselves are."""

    images: Artifact
    source: ImageSourceOptions


@dataclass(frozen=True)
class TokenizedImages(IndexedImages):
    """The same with their tokens, and the encoder that made them (None where that is not known)."""

    tokens: Artifact
    clip: ClipOptions | None = None


def token_calls(config: KClipBuildConfig, *, variant: str = "") -> tuple[ExpectedCall, ...]:
    """Those up to the tokens, in the order in which they are made."""
    needed = {make_demo_images: config.images.kind == "demo", train_demo_clip: config.clip.model == "demo"}
    stages = [stage for stage in TOKEN_STAGES if needed.get(stage, True)]
    return tuple(
        ExpectedCall(f"{stage.__name__}-{variant}" if variant and stage in _OF_A_TOKENIZER else stage.__name__)
        for stage in stages
    )


def expected_calls(config: KClipBuildConfig) -> tuple[ExpectedCall, ...]:
    """Those of a build, in the order in which they are made."""
    return (*token_calls(config), ExpectedCall(report.__name__))


def find_images(config: KClipBuildConfig, run: Chain) -> IndexedImages:
    """Draw the demo's images if they are wanted, and index the images."""
    source = config.images
    if source.kind == "demo":
        pictures = run(make_demo_images, config.demo_images)
        source = source.model_copy(update={"kind": "folder", "path": str(pictures.path)})
    return IndexedImages(run(index_images, source), source)


def build_tokens(config: KClipBuildConfig, run: Chain, *, variant: str = "") -> TokenizedImages:
    """All stages up to the tokens. `variant`: of the tokenizer, where a run has several."""
    found, clip = find_images(config, run), config.clip
    images, source = found.images, found.source
    if clip.model == "demo":
        trained = run(train_demo_clip, config.demo_clip, images=images, source=source)
        clip = clip.model_copy(update={"model": f"local-dir:{trained.path}"})
    pixels: dict[str, Any] = {"images": images, "source": source, "decoding": config.decoding}
    features = run(extract_features, config.features, clip=clip, variant=variant, **pixels)
    codebook = run(fit_codebook, config.codebook, features=features, variant=variant)
    tokens = run(tokenize_images, clip=clip, codebook=codebook, variant=variant, **pixels)
    return TokenizedImages(images, source, tokens, clip)


def kclip_build(config: KClipBuildConfig, workspace: Workspace, run_stage: RunStage = run_directly) -> FlowResult:
    """Build tokens, or find them, and report on them. `run_stage` makes one call of a stage."""
    run = Chain(workspace, run_stage)
    built = build_tokens(config, run)
    run(report, run.artifacts, source=built.source, decoding=config.decoding)
    return run.finished()
