"""The comparison: every pre-training of a grid, evaluated alike, and one report on all of them.

Cells share whatever they can: tokens, image index, CLIP. A cell that fails does not keep the others from running.
"""

from collections.abc import Iterator

from pipeline.config import GridOptions, ReproduceConfig
from pipeline.paper_standard import paper_standard
from pipeline.report.build_report import report
from pipeline.variations import with_seed, with_tokenizer
from pipeline.wiring.base import Chain, ExpectedCall, FlowResult, RunStage, run_directly
from pipeline.wiring.evaluate import (
    calls_of_evaluate_backbone,
    calls_of_evaluate_clip,
    calls_of_evaluate_tokens,
    evaluate_backbone,
    evaluate_clip,
    evaluate_tokens,
    require_labels,
)
from pipeline.wiring.grid import Cell, pretrained_cells, scratch_cells
from pipeline.wiring.pretrain import call_of_pretrain_one, calls_of_find_tokens, find_tokens, pretrain_one
from pipeline.wiring.tokens import TokenizedImages, find_images
from pipeline.workspace import Workspace
from storage.artifact import Artifact


def expected_calls(config: ReproduceConfig) -> tuple[ExpectedCall, ...]:
    """Those of a run, in the order in which they are made; what cells share, once."""
    unique: dict[str, ExpectedCall] = {}
    for call in _calls(config):
        unique.setdefault(call.name, call)
    return tuple(unique.values())


def reproduce(config: ReproduceConfig, workspace: Workspace, run_stage: RunStage = run_directly) -> FlowResult:
    """Run what is missing of the grid. `run_stage` makes one call of a stage."""
    run, grid = Chain(workspace, run_stage), config.compared
    require_labels(config, find_images(config, run))
    first: TokenizedImages | None = None  # what is reported, and what backbones from scratch see
    build: tuple[Artifact, ...] = ()
    for tokenizer in _tokenizers(grid):
        with run.attempt(f"tokens of {tokenizer}, and what needs them"):
            chosen = with_tokenizer(config, tokenizer)
            built = find_tokens(chosen, run, variant=_variant(grid, tokenizer))
            if first is None:
                first, build = built, (*run.artifacts, built.tokens)  # given ones are no result of this run
            evaluate_clip(chosen, built, run)
            for seed in grid.seeds:
                evaluate_tokens(with_seed(chosen, seed), built, run, subject=_token_subject(grid, tokenizer, seed))
            for cell in pretrained_cells(grid):
                if cell.tokenizer == tokenizer:
                    _run_cell(cell, config, built, run)
    if first:
        for cell in scratch_cells(grid):
            evaluate_backbone(cell.configure(config), first, None, run, subject=cell.name)
        made = tuple(artifact for artifact in run.artifacts if artifact not in build)
        with run.attempt("report"):
            run(
                report,
                build,
                compared=made,
                title=grid.title,
                standard=paper_standard(),
                source=first.source,
                decoding=config.decoding,
            )
    return run.finished()


def _run_cell(cell: Cell, config: ReproduceConfig, built: TokenizedImages, run: Chain) -> None:
    with run.attempt(f"{cell.name}, and its evaluations"):
        chosen = cell.configure(config)
        trained = pretrain_one(chosen, built, run, variant=cell.name)
        evaluate_backbone(chosen, built, trained, run, subject=cell.name)


def _calls(config: ReproduceConfig) -> Iterator[ExpectedCall]:
    grid = config.compared
    for tokenizer in _tokenizers(grid):
        chosen = with_tokenizer(config, tokenizer)
        yield from calls_of_find_tokens(chosen, variant=_variant(grid, tokenizer))
        yield from calls_of_evaluate_clip(chosen)
        for seed in grid.seeds:
            yield from calls_of_evaluate_tokens(chosen, subject=_token_subject(grid, tokenizer, seed))
        for cell in pretrained_cells(grid):
            if cell.tokenizer == tokenizer:
                configured = cell.configure(config)
                yield call_of_pretrain_one(configured, variant=cell.name)
                yield from calls_of_evaluate_backbone(configured, cell.name)
    for cell in scratch_cells(grid):
        yield from calls_of_evaluate_backbone(cell.configure(config), cell.name)
    yield ExpectedCall(report.__name__)


def _tokenizers(grid: GridOptions) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*grid.tokenizers, *grid.tokens_only)))


def _variant(grid: GridOptions, tokenizer: str) -> str:
    """The stages of the first tokenizer go by their plain names."""
    return "" if tokenizer == grid.tokenizers[0] else tokenizer


def _token_subject(grid: GridOptions, tokenizer: str, seed: int) -> str:
    words = (_variant(grid, tokenizer), f"seed{seed}" if len(grid.seeds) > 1 else "")
    return "-".join(word for word in words if word)
