"""From images to k-CLIP tokens: the stages in order. Written once; who runs them (a command, Prefect) is the caller's.

    make_demo_images -> index_images -> train_demo_clip -> extract_features -> fit_codebook -> tokenize_images -> report

(the first and third only for the embedded demo)
"""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.config import KClipBuildConfig
from pipeline.extract_features import extract_features
from pipeline.fit_codebook import fit_codebook
from pipeline.index_images import index_images
from pipeline.make_demo_images import make_demo_images
from pipeline.report.kclip_report import report
from pipeline.tokenize_images import tokenize_images
from pipeline.train_demo_clip import train_demo_clip
from pipeline.workspace import StageResult, Workspace, numbers

RunStage = Callable[..., StageResult]
STAGES: tuple[RunStage, ...] = (
    make_demo_images,
    index_images,
    train_demo_clip,
    extract_features,
    fit_codebook,
    tokenize_images,
    report,
)


@dataclass(frozen=True)
class KClipBuild:
    """What a build produced, stage by stage."""

    results: tuple[StageResult, ...]

    def __getitem__(self, stage: str) -> StageResult:
        return next(result for result in self.results if result.stage == stage)

    @property
    def all_cached(self) -> bool:
        return all(result.cached for result in self.results)


def stage_names(config: KClipBuildConfig) -> tuple[str, ...]:
    """The stages of a build, in the order in which they run."""
    needed = {"make_demo_images": config.images.kind == "demo", "train_demo_clip": config.clip.model == "demo"}
    return tuple(stage.__name__ for stage in STAGES if needed.get(stage.__name__, True))


def run_directly(stage: RunStage, *arguments: object, **inputs: object) -> StageResult:
    return stage(*arguments, **inputs)


def kclip_build(
    config: KClipBuildConfig, workspace: Workspace, run_stage: Callable[..., StageResult] = run_directly
) -> KClipBuild:
    """Build tokens, or find them. `run_stage(stage, *arguments, workspace=..., **inputs)` calls one stage."""
    results: list[StageResult] = []

    def run(stage: RunStage, *arguments: object, **inputs: object) -> StageResult:
        result = run_stage(stage, *arguments, workspace=workspace, **inputs)
        # On the parent run too: MLflow's table of builds then compares them without opening one.
        workspace.run.metrics({f"{result.stage}/{name}": value for name, value in numbers(result.artifact).items()})
        results.append(result)
        return result

    source, clip = config.images, config.clip
    if source.kind == "demo":
        pictures = run(make_demo_images, config.demo_images)
        source = source.model_copy(update={"kind": "folder", "path": str(pictures.artifact.path)})
    images = run(index_images, source).artifact
    if clip.model == "demo":
        trained = run(train_demo_clip, config.demo_clip, images=images, source=source)
        clip = clip.model_copy(update={"model": f"local-dir:{trained.artifact.path}"})
    pixels = {"images": images, "source": source, "decoding": config.decoding}
    features = run(extract_features, config.features, clip=clip, **pixels).artifact
    codebook = run(fit_codebook, config.codebook, features=features).artifact
    run(tokenize_images, clip=clip, codebook=codebook, **pixels)
    run(report, tuple(result.artifact for result in results), source=source, decoding=config.decoding)
    return KClipBuild(tuple(results))
