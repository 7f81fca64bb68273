"""From images to a pre-trained backbone: the tokens (built, found, or given), then `pretrain`, then a report."""

from pathlib import Path

from pipeline.config import PretrainConfig
from pipeline.data.token_images import given_tokens
from pipeline.pretrain import pretrain
from pipeline.report.kclip_report import report
from pipeline.wiring.base import Chain, FlowResult, RunStage, run_directly
from pipeline.wiring.kclip_build import TokenizedImages, build_tokens, find_images, token_stage_names
from pipeline.workspace import Workspace
from storage.artifact import Artifact


def stage_names(config: PretrainConfig) -> tuple[str, ...]:
    """The stages of a run, in the order in which they run."""
    return (*names_up_to_pretrain(config), *(() if config.pretrain.tokens else (report.__name__,)))


def names_up_to_pretrain(config: PretrainConfig) -> tuple[str, ...]:
    """Those that find or build the tokens, and the pre-training itself."""
    given = {"make_demo_images", "index_images"} if config.pretrain.tokens else None
    before = (name for name in token_stage_names(config) if given is None or name in given)
    return (*before, f"pretrain-{config.pretrain.objective}")


def pretrain_on_tokens(config: PretrainConfig, workspace: Workspace, run_stage: RunStage = run_directly) -> FlowResult:
    """Pre-train one backbone with one objective, or find it. `run_stage` makes one call of a stage."""
    run = Chain(workspace, run_stage)
    built = find_tokens(config, run)
    pretrain_one(config, built, run)
    if not config.pretrain.tokens:  # the report tells of a whole build; of given tokens there is none
        run(report, run.artifacts, source=built.source, decoding=config.decoding)
    return run.finished()


def find_tokens(config: PretrainConfig, run: Chain) -> TokenizedImages:
    """The tokens that `pretrain.tokens` names, or those that the build makes.

    Raises:
        ArtifactMissing: nothing lies where `pretrain.tokens` points.
    """
    if not config.pretrain.tokens:
        return build_tokens(config, run)
    found = find_images(config, run)
    return TokenizedImages(found.images, found.source, given_tokens(Path(config.pretrain.tokens)))


def pretrain_one(config: PretrainConfig, built: TokenizedImages, run: Chain) -> Artifact:
    """Pre-train with the objective that `config.pretrain` selects."""
    return run(
        pretrain,
        config.pretrain,
        variant=config.pretrain.objective,
        objective=getattr(config.objectives, config.pretrain.objective),
        backbone=config.backbone,
        training=config.training,
        images=built.images,
        source=built.source,
        tokens=built.tokens,
    )
