"""What the paper sets differently for each backbone: the cutting point (section 5.1) and the fine-tuning (Table 9).

Everything else of its Tables 8-10 is the same for all of them and stands as defaults in the options themselves.
"""

from dataclasses import dataclass
from typing import TypeVar

from pipeline.config import EvaluateConfig, PretrainConfig

_Config = TypeVar("_Config", bound=PretrainConfig)


@dataclass(frozen=True)
class PaperRecipe:
    """Of one backbone. `cutting_point` counts the class token, as the released code does."""

    cutting_point: int
    fine_tune_epochs: int
    fine_tune_learning_rate: float
    layer_decay: float


PAPER_RECIPES = {
    "vit_tiny": PaperRecipe(cutting_point=50, fine_tune_epochs=300, fine_tune_learning_rate=2.5e-4, layer_decay=1.0),
    "vit_small": PaperRecipe(cutting_point=50, fine_tune_epochs=200, fine_tune_learning_rate=5e-3, layer_decay=0.65),
    "vit_base": PaperRecipe(cutting_point=60, fine_tune_epochs=100, fine_tune_learning_rate=5e-4, layer_decay=0.65),
}


def with_paper_recipe(config: _Config, backbone: str) -> _Config:
    """The same for another of the paper's backbones, with what the paper sets differently for it."""
    recipe = PAPER_RECIPES[backbone]
    chosen = config.model_copy(update={"backbone": config.backbone.model_copy(update={"name": backbone})})
    for objective in ("pim", "mapet"):
        chosen = with_cutting_point(chosen, objective, recipe.cutting_point)
    if not isinstance(chosen, EvaluateConfig):
        return chosen
    training = chosen.fine_tune.training.model_copy(
        update={"epochs": recipe.fine_tune_epochs, "peak_learning_rate": recipe.fine_tune_learning_rate}
    )
    fine_tune = chosen.fine_tune.model_copy(update={"training": training, "layer_decay": recipe.layer_decay})
    return chosen.model_copy(update={"fine_tune": fine_tune})


def with_cutting_point(config: _Config, objective: str, cutting_point: int) -> _Config:
    """The same with another cutting point of PIM or MaPeT."""
    options = getattr(config.objectives, objective).model_copy(update={"cutting_point": cutting_point})
    return config.model_copy(update={"objectives": config.objectives.model_copy(update={objective: options})})
