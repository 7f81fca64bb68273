"""Single stages for tests, on artifacts that are at hand, and whole chains."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.clip.demo_options import DemoClipOptions
from models.clip.options import ClipOptions
from models.kmeans.options import CodebookOptions
from pipeline.chains.by_name import CHAINS
from pipeline.chains.graph import FlowResult
from pipeline.chains.run import run
from pipeline.configuration.config import PretrainConfig
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.demo_options import DemoImagesOptions, DemoSegmentationOptions
from pipeline.data.inputs import ImageLocation, Images, Network
from pipeline.data.source_options import ImageSourceOptions
from pipeline.encoding.feature_options import FeatureOptions
from pipeline.engine.stage import Given
from pipeline.engine.workspace import StageResult, Workspace
from pipeline.stages.demo.make_demo_images import MakeDemoImages
from pipeline.stages.demo.make_demo_segmentation import MakeDemoSegmentation
from pipeline.stages.demo.train_demo_clip import TrainDemoClip
from pipeline.stages.evaluate.evaluate import Evaluate
from pipeline.stages.evaluate.evaluation_options import EvaluationOptions
from pipeline.stages.extract_features import ExtractFeatures
from pipeline.stages.fit_codebook import FitCodebook
from pipeline.stages.fit_vqkd import FitVQKD
from pipeline.stages.index_images import IndexImages
from pipeline.stages.pretrain import Pretrain
from pipeline.stages.report.departures import Standard
from pipeline.stages.report.report import Report
from pipeline.stages.tokenize_images import TokenizeImages
from pipeline.training.vqkd_options import FitVQKDOptions
from storage.artifact import Artifact


def _chain(flow: str) -> Callable[..., FlowResult]:
    """Return what runs a flow: `(config, workspace, make_node)`."""
    return lambda config, workspace, *how: run(CHAINS[flow].graph(config, workspace.settings), workspace, *how)


kclip_build, pretrain_on_tokens = _chain("kclip-build"), _chain("pretrain")
evaluate_pretraining, reproduce = _chain("evaluate"), _chain("reproduce")


@dataclass(frozen=True, eq=False)
class AtHand(Given):
    """An artifact that a test has."""

    artifact: Artifact

    def read(self) -> Artifact:
        return self.artifact


def available(artifact: Artifact | None) -> Any:
    return None if artifact is None else AtHand(artifact)


@dataclass(frozen=True)
class TokenizedImages:
    """The artifacts of a build, and where its images are."""

    images: Artifact
    source: ImageSourceOptions
    tokens: Artifact

    @property
    def of_stage(self) -> Images:
        return images_at_hand(self.images, self.source)


def images_at_hand(index: Artifact, source: ImageSourceOptions) -> Images:
    return Images(AtHand(index), ImageLocation(source))


def make_demo_images(options: DemoImagesOptions, *, workspace: Workspace) -> StageResult:
    return workspace.make(MakeDemoImages(options), workspace.made())


def make_demo_segmentation(
    options: DemoSegmentationOptions, *, drawing: DemoImagesOptions, workspace: Workspace
) -> StageResult:
    return workspace.make(MakeDemoSegmentation(options, drawing), workspace.made())


def index_images(options: ImageSourceOptions, *, workspace: Workspace) -> StageResult:
    return workspace.make(IndexImages(ImageLocation(options)), workspace.made())


def train_demo_clip(
    options: DemoClipOptions, *, images: Artifact, source: ImageSourceOptions, workspace: Workspace
) -> StageResult:
    return workspace.make(TrainDemoClip(options, images_at_hand(images, source)), workspace.made())


def extract_features(
    options: FeatureOptions,
    *,
    images: Artifact,
    source: ImageSourceOptions,
    decoding: DecodingOptions,
    encoder: Any,
    workspace: Workspace,
) -> StageResult:
    stage = ExtractFeatures(options, images_at_hand(images, source), decoding, Network(encoder))
    return workspace.make(stage, workspace.made())


def fit_codebook(options: CodebookOptions, *, features: Artifact, workspace: Workspace) -> StageResult:
    return workspace.make(FitCodebook(options, available(features)), workspace.made())


def fit_vqkd(
    options: FitVQKDOptions,
    *,
    images: Artifact,
    source: ImageSourceOptions,
    decoding: DecodingOptions,
    workspace: Workspace,
) -> StageResult:
    stage = FitVQKD(options, Network(options.teacher), images_at_hand(images, source), decoding)
    return workspace.make(stage, workspace.made())


def tokenize_images(
    tokenizer: Any,
    *,
    images: Artifact,
    source: ImageSourceOptions,
    decoding: DecodingOptions,
    codebook: Artifact | None = None,
    features: Artifact | None = None,
    workspace: Workspace,
) -> StageResult:
    seen = images_at_hand(images, source)
    stage = TokenizeImages(Network(tokenizer), seen, decoding, available(codebook), available(features))
    return workspace.make(stage, workspace.made())


def pretrain(config: PretrainConfig, built: TokenizedImages, workspace: Workspace) -> StageResult:
    objective = getattr(config.objectives, config.pretrain.objective)
    parts = (config.pretrain, objective, config.backbone, config.training)
    return workspace.make(Pretrain(*parts, built.of_stage, available(built.tokens)), workspace.made())


def evaluate(
    protocol: str,
    *,
    options: EvaluationOptions,
    backbone: Any,
    images: Artifact,
    source: ImageSourceOptions,
    pretrained: Artifact | None = None,
    tokens: Artifact | None = None,
    clip: ClipOptions | None = None,
    workspace: Workspace,
    **more: Any,
) -> StageResult:
    stage = Evaluate(
        protocol,
        options,
        backbone,
        images_at_hand(images, source),
        tokens=available(tokens),
        pretrained=available(pretrained),
        clip=None if clip is None else Network(clip),
        **more,
    )
    return workspace.make(stage, workspace.made())


def report(
    artifacts: tuple[Artifact, ...],
    *,
    compared: tuple[Artifact, ...] = (),
    title: str = "",
    standard: Standard | None = None,
    source: ImageSourceOptions,
    decoding: DecodingOptions,
    workspace: Workspace,
) -> StageResult:
    given = {artifact.stage: AtHand(artifact) for artifact in artifacts}
    stage = Report(
        Images(given["index_images"], ImageLocation(source)),
        given["tokenize_images"],
        decoding,
        made_from=tuple(given.values()),
        compared=tuple(map(AtHand, compared)),
        title=title,
        standard=standard or {},
    )
    return workspace.make(stage, workspace.made())
