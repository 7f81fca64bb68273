"""What the paper sets differently for each backbone: the cutting point (section 5.1) and the fine-tuning (Table 9).

Everything else of its Tables 8-10 is the same for all of them and stands as defaults in the options themselves.
"""

from dataclasses import dataclass


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
