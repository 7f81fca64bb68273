"""From images to scores: a pre-training (built, or found), then every protocol on it."""

from pipeline.config import EvaluateConfig
from pipeline.evaluate.evaluate import PROTOCOLS, evaluate
from pipeline.wiring.base import Chain, FlowResult, RunStage, run_directly
from pipeline.wiring.kclip_build import TokenizedImages
from pipeline.wiring.pretrain import find_tokens, names_up_to_pretrain, pretrain_one
from pipeline.workspace import Workspace
from storage.artifact import Artifact


def stage_names(config: EvaluateConfig) -> tuple[str, ...]:
    """The calls of a run, in the order in which they are made."""
    evaluated = evaluation_names(config, config.pretrain.objective)
    return (*names_up_to_pretrain(config), *evaluated, *token_evaluation_names(config))


def evaluation_names(config: EvaluateConfig, subject: str) -> tuple[str, ...]:
    return tuple(f"evaluate-{name}-{subject}" for name in config.evaluate.protocols if not PROTOCOLS[name].of_tokens)


def token_evaluation_names(config: EvaluateConfig) -> tuple[str, ...]:
    return tuple(f"evaluate-{name}" for name in config.evaluate.protocols if PROTOCOLS[name].of_tokens)


def evaluate_pretraining(
    config: EvaluateConfig, workspace: Workspace, run_stage: RunStage = run_directly
) -> FlowResult:
    """Evaluate one pre-training, and its tokens. `run_stage` makes one call of a stage."""
    run = Chain(workspace, run_stage)
    built = find_tokens(config, run)
    trained = pretrain_one(config, built, run)
    evaluate_backbone(config, built, trained, run, subject=config.pretrain.objective)
    evaluate_tokens(config, built, run)
    return run.finished()


def evaluate_backbone(
    config: EvaluateConfig, built: TokenizedImages, pretrained: Artifact | None, run: Chain, *, subject: str
) -> None:
    """All protocols of backbones; without a pre-training from scratch."""
    for name in config.evaluate.protocols:
        if not PROTOCOLS[name].of_tokens:
            _evaluate(name, f"{name}-{subject}", config, built, pretrained, run)


def evaluate_tokens(config: EvaluateConfig, built: TokenizedImages, run: Chain) -> None:
    """All protocols of tokens."""
    for name in config.evaluate.protocols:
        if PROTOCOLS[name].of_tokens:
            _evaluate(name, name, config, built, None, run)


def _evaluate(
    name: str, variant: str, config: EvaluateConfig, built: TokenizedImages, pretrained: Artifact | None, run: Chain
) -> None:
    run(
        evaluate,
        name,
        variant=variant,
        options=getattr(config, name),
        backbone=config.backbone,
        pretrained=pretrained,
        images=built.images,
        source=built.source,
        tokens=built.tokens,
    )
