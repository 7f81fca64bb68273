"""The cells of a reproduction's grid, and the configuration of each.

    tokenizers x backbones x objectives x cutting points x seeds

and training from scratch for each backbone and seed. What a cell does not vary is as the configuration says.
"""

from dataclasses import dataclass
from itertools import product

from pipeline.chains.graph import SCRATCH
from pipeline.configuration.config import EvaluateConfig, GridOptions, ReproduceConfig
from pipeline.configuration.variations import (
    from_scratch,
    has_cutting_point,
    with_cutting_point,
    with_paper_recipe,
    with_seed,
    with_tokenizer,
)


@dataclass(frozen=True)
class Cell:
    """One backbone that is trained and evaluated.

    Attributes:
        name: the objective, and what else varies in the grid.
        objective: or SCRATCH.
        tokenizer: whose tokens it learns; "" from scratch.
        backbone: "" for that of the configuration.
        cutting_point: None for that of the configuration.
    """

    name: str
    objective: str
    seed: int
    tokenizer: str = ""
    backbone: str = ""
    cutting_point: int | None = None

    def configure(self, config: ReproduceConfig) -> EvaluateConfig:
        """Return the configuration of its pre-training and its evaluations."""
        chosen: EvaluateConfig = with_tokenizer(config, self.tokenizer)
        if self.backbone:
            chosen = with_paper_recipe(chosen, self.backbone)
        if self.cutting_point is not None:
            chosen = with_cutting_point(chosen, self.objective, self.cutting_point)
        if self.objective == SCRATCH:
            wanted = [name for name in config.evaluate.protocols if name in config.grid.scratch_protocols]
            evaluated = config.evaluate.model_copy(update={"protocols": tuple(wanted)})
            chosen = from_scratch(chosen).model_copy(update={"evaluate": evaluated})
        else:
            pretrain = chosen.pretrain.model_copy(update={"objective": self.objective, "seed": self.seed})
            chosen = chosen.model_copy(update={"pretrain": pretrain})
        return with_seed(chosen, self.seed)


def pretrained_cells(grid: GridOptions) -> list[Cell]:
    """Return every pre-training of the grid."""
    found = []
    for tokenizer, backbone, objective in product(grid.tokenizers, grid.backbones or ("",), grid.objectives):
        cuts = grid.cutting_points if has_cutting_point(objective) else ()
        for cut, seed in product(cuts or (None,), grid.seeds):
            name = _name(grid, objective, tokenizer, backbone, cut, seed)
            found.append(Cell(name, objective, seed, tokenizer, backbone, cut))
    return found


def scratch_cells(grid: GridOptions) -> list[Cell]:
    """Return every training from random weights."""
    combined = product(grid.backbones or ("",), grid.seeds) if grid.scratch else ()
    return [
        Cell(_name(grid, SCRATCH, "", backbone, None, seed), SCRATCH, seed, backbone=backbone)
        for backbone, seed in combined
    ]


def _name(grid: GridOptions, objective: str, tokenizer: str, backbone: str, cut: int | None, seed: int) -> str:
    varying = (
        (tokenizer, bool(tokenizer) and len(grid.tokenizers) > 1),
        (backbone, len(grid.backbones) > 1),
        (f"c{cut}", cut is not None),
        (f"seed{seed}", len(grid.seeds) > 1),
    )
    return "-".join([objective, *(word for word, varies in varying if varies)])
