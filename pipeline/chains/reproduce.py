"""The comparison: every pre-training of a grid, evaluated alike, and one report on all of them.

Cells share whatever they can: tokens, image index, CLIP. A cell that fails does not keep the others from running.
Backbones from scratch see the images of the first tokenizer's tokens.
"""

from collections.abc import Iterator

from pipeline.chains.evaluate import of_backbone, of_clip, of_tokens
from pipeline.chains.graph import Graph, Node, in_cell, in_part, stages_of
from pipeline.chains.grid import Cell, pretrained_cells, scratch_cells
from pipeline.chains.paper_standard import paper_standard
from pipeline.chains.pretrain import pretrained, squares_of, tokens_of
from pipeline.chains.tokens import Tokenized, indexed
from pipeline.configuration.config import GridOptions, ReproduceConfig
from pipeline.configuration.variations import with_seed, with_tokenizer
from pipeline.stages.report.report import Report


def reproduce(config: ReproduceConfig, *, stored_squares: bool = False) -> Graph:
    """Return the graph of all cells of the grid, and of a report on them; and of the squares that pre-trainings see, if
    they are to be kept."""
    grid = config.compared
    tokenizers = tuple(dict.fromkeys((*grid.tokenizers, *grid.tokens_only)))
    stored = stored_squares and bool(grid.objectives)
    tokens = {
        name: tokens_of(with_tokenizer(config, name), variant=_variant(grid, name), stored_squares=stored)
        for name in tokenizers
    }
    first = tokens[tokenizers[0]]
    nodes = [*indexed(config)[0]]  # without which there is nothing
    for name in tokenizers:
        nodes += _of_tokenizer(name, config, tokens[name])
    for cell in scratch_cells(grid):
        nodes += in_cell(of_backbone(cell.configure(config), first, None, subject=cell.name), cell.name)
    graph, build, squares = Graph.of(nodes), stages_of(first.nodes), stages_of(squares_of(first))
    report = Report(
        first.images,
        first.tokens,
        config.decoding,
        made_from=build,
        compared=tuple(stage for stage in stages_of(graph.nodes) if stage not in (*build, *squares)),
        title=grid.title,
        standard=paper_standard(),
    )
    return Graph((*graph.nodes, Node(report, config, part="report")))


def _of_tokenizer(name: str, config: ReproduceConfig, built: Tokenized) -> Iterator[Node]:
    """Yield its tokens, what judges them, and the pre-trainings that learn them."""
    grid, chosen = config.compared, with_tokenizer(config, name)
    yield from in_part(built.nodes, f"tokens of {name}, and what needs them")
    yield from in_part(squares_of(built), "squares, without which images are decoded")
    yield from of_clip(chosen, built)
    for seed in grid.seeds:
        yield from of_tokens(with_seed(chosen, seed), built, subject=_token_subject(grid, name, seed))
    for cell in pretrained_cells(grid):
        if cell.tokenizer == name:
            yield from in_cell(_of_cell(cell, config, built), cell.name)


def _of_cell(cell: Cell, config: ReproduceConfig, built: Tokenized) -> Iterator[Node]:
    chosen = cell.configure(config)
    trained = pretrained(chosen, built, variant=cell.name)
    yield from in_part([trained], f"{cell.name}, and its evaluations")
    yield from of_backbone(chosen, built, trained.stage, subject=cell.name)


def _variant(grid: GridOptions, tokenizer: str) -> str:
    """Return the variant of a tokenizer's stages; those of the first tokenizer go by their plain names."""
    return "" if tokenizer == grid.tokenizers[0] else tokenizer


def _token_subject(grid: GridOptions, tokenizer: str, seed: int) -> str:
    words = (_variant(grid, tokenizer), f"seed{seed}" if len(grid.seeds) > 1 else "")
    return "-".join(word for word in words if word)
