"""The comparison: one token store, a pre-training for every objective of the grid, their evaluations, one report."""

from pipeline.config import ReproduceConfig
from pipeline.report.kclip_report import report
from pipeline.wiring.base import Chain, FlowResult, RunStage, run_directly
from pipeline.wiring.evaluate import evaluate_backbone, evaluate_tokens, evaluation_names, token_evaluation_names
from pipeline.wiring.kclip_build import build_tokens, token_stage_names
from pipeline.wiring.pretrain import pretrain_one
from pipeline.workspace import Workspace


def stage_names(config: ReproduceConfig) -> tuple[str, ...]:
    """The stages of a run, in the order in which they run."""
    trained = (f"pretrain-{objective}" for objective in config.grid.objectives)
    evaluated = (name for objective in config.grid.objectives for name in evaluation_names(config, objective))
    scratch = evaluation_names(config, "scratch") if config.grid.scratch else ()
    tokens = token_evaluation_names(config)
    return (*token_stage_names(config), *trained, *evaluated, *scratch, *tokens, report.__name__)


def reproduce(config: ReproduceConfig, workspace: Workspace, run_stage: RunStage = run_directly) -> FlowResult:
    """Run what is missing of the grid. `run_stage` makes one call of a stage."""
    run = Chain(workspace, run_stage)
    built = build_tokens(config, run)
    trained = {}
    for objective in config.grid.objectives:
        chosen = config.pretrain.model_copy(update={"objective": objective})
        trained[objective] = pretrain_one(config.model_copy(update={"pretrain": chosen}), built, run)
    for objective, pretrained in trained.items():
        evaluate_backbone(config, built, pretrained, run, subject=objective)
    if config.grid.scratch:
        evaluate_backbone(config, built, None, run, subject="scratch")
    evaluate_tokens(config, built, run)
    run(report, run.artifacts, source=built.source, decoding=config.decoding)
    return run.finished()
