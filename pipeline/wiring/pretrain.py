"""From images to a pre-trained backbone: the tokens (built, found, or given), then `pretrain`, then a report."""

from pathlib import Path

from pipeline.config import PretrainConfig
from pipeline.data.token_images import given_tokens
from pipeline.pretrain import pretrain
from pipeline.report.build_report import report
from pipeline.wiring.base import Chain, ExpectedCall, FlowResult, RunStage, run_directly
from pipeline.wiring.tokens import TokenizedImages, build_tokens, find_images, token_calls
from pipeline.workspace import Workspace
from storage.artifact import Artifact


def expected_calls(config: PretrainConfig) -> tuple[ExpectedCall, ...]:
    """Those of a run, in the order in which they are made."""
    return (*calls_of_find_tokens(config), call_of_pretrain_one(config), ExpectedCall(report.__name__))


def calls_of_find_tokens(config: PretrainConfig, *, variant: str = "") -> tuple[ExpectedCall, ...]:
    given = {"make_demo_images", "index_images"} if config.pretrain.tokens else None
    return tuple(call for call in token_calls(config, variant=variant) if given is None or call.name in given)


def call_of_pretrain_one(config: PretrainConfig, *, variant: str = "") -> ExpectedCall:
    return ExpectedCall(f"pretrain-{variant or config.pretrain.objective}", config)


def pretrain_on_tokens(config: PretrainConfig, workspace: Workspace, run_stage: RunStage = run_directly) -> FlowResult:
    """Pre-train one backbone with one objective, or find it. `run_stage` makes one call of a stage."""
    run = Chain(workspace, run_stage)
    built = find_tokens(config, run)
    build = (*run.artifacts, built.tokens)  # given ones are no result of this run
    trained = pretrain_one(config, built, run)
    run(report, build, compared=(trained,), source=built.source, decoding=config.decoding)
    return run.finished()


def find_tokens(config: PretrainConfig, run: Chain, *, variant: str = "") -> TokenizedImages:
    """The tokens that `pretrain.tokens` names, or those that the build makes.

    Raises:
        ArtifactMissing: nothing lies where `pretrain.tokens` points.
    """
    if not config.pretrain.tokens:
        return build_tokens(config, run, variant=variant)
    found = find_images(config, run)
    return TokenizedImages(found.images, found.source, given_tokens(Path(config.pretrain.tokens)))


def pretrain_one(config: PretrainConfig, built: TokenizedImages, run: Chain, *, variant: str = "") -> Artifact:
    """Pre-train with the objective that `config.pretrain` selects, which is the variant unless one is given."""
    return run(
        pretrain,
        config.pretrain,
        variant=variant or config.pretrain.objective,
        objective=getattr(config.objectives, config.pretrain.objective),
        backbone=config.backbone,
        training=config.training,
        images=built.images,
        source=built.source,
        tokens=built.tokens,
    )
