"""What readers want to know of the recipes of stages; each view has the names that the stage's options have."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.engine.stage_record import RecipeView
from pipeline.training.options import TrainingLength


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Drawing(_Section):
    image_size: int


class DemoImagesRecipe(RecipeView):
    """Of the demo's pictures."""

    image_size: int
    limit: int | None = None


class DemoSegmentationRecipe(RecipeView):
    """Of the demo's pictures with a class for every pixel."""

    drawing: _Drawing


class EncodingRecipe(RecipeView):
    """Of features and tokens: what of a network defines them."""

    encoder: Mapping[str, Any]


class FeaturesRecipe(EncodingRecipe):
    """Of a feature sample."""

    sample_fraction: float
    splits: tuple[str, ...]


class CodebookRecipe(RecipeView):
    """Of a k-means codebook."""

    mode: str


class RecordedBackbone(_Section):
    """Of a backbone."""

    name: str
    drop_path_rate: float = 0.0


class RecordedTraining(_Section):
    """Of a training; `epochs` or `steps`, or neither where nobody recorded it."""

    epochs: int | None = None
    steps: int | None = None
    report_steps: int = 1

    @property
    def length(self) -> TrainingLength:
        return TrainingLength(self.epochs, self.steps)


class RecordedObjective(_Section):
    """Of an objective; `cutting_point`: None where it has none."""

    cutting_point: int | None = None


class PretrainRecipe(RecipeView):
    """Of a pre-training."""

    objective: str
    objective_options: RecordedObjective = RecordedObjective()
    backbone: RecordedBackbone
    training: RecordedTraining
    colour_jitter: float = 0.0
    seed: int


class EvaluateRecipe(RecipeView):
    """Of an evaluation.

    Attributes:
        options: all of the protocol's.
        backbone: None where there is none.
        tokens: digest of those that were judged; "" of other protocols.
        data_set: what the images are called, where they are not those of the pre-training.
    """

    protocol: str
    options: Mapping[str, Any]
    backbone: RecordedBackbone | None = None
    tokens: str | None = None
    data_set: str = ""
    keep_weights: bool = False

    @property
    def token_network(self) -> str:
        """What classifies tokens: `mlp` or `vit`."""
        return str(self.options["network"])

    @property
    def segmented_classes(self) -> int:
        """Of a segmentation."""
        return int(self.options["classes"])
