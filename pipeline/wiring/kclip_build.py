"""The build: from images to tokens, then a report on them."""

from pipeline.checks import require_possible_run
from pipeline.config import KClipBuildConfig
from pipeline.report.build_report import report
from pipeline.wiring.base import Chain, ExpectedCall, FlowResult, RunStage, run_directly
from pipeline.wiring.tokens import build_tokens, find_images, token_calls
from pipeline.workspace import Workspace


def expected_calls(config: KClipBuildConfig) -> tuple[ExpectedCall, ...]:
    """Those of a build, in the order in which they are made."""
    return (*token_calls(config), ExpectedCall(report.__name__, config))


def kclip_build(config: KClipBuildConfig, workspace: Workspace, run_stage: RunStage = run_directly) -> FlowResult:
    """Build tokens, or find them, and report on them. `run_stage` makes one call of a stage."""
    run = Chain(workspace, run_stage)
    require_possible_run(expected_calls(config), find_images(config, run).images, workspace.settings)
    built = build_tokens(config, run)
    run(report, run.artifacts, source=built.source, decoding=config.decoding)
    return run.finished()
