"""Stage `make_demo_segmentation`: some of the demo's images with a class for every pixel, in ADE20K's layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.data.demo_options import DemoImagesOptions, DemoSegmentationOptions
from pipeline.engine.fingerprint import defining_options
from pipeline.engine.parts import Parts
from pipeline.engine.stage import Made, Stage, recipe_of
from pipeline.engine.tracker import TrackedRun
from pipeline.stages.records import DemoSegmentationRecord
from storage.artifact import Built, Recipe


@dataclass(frozen=True)
class MakeDemoSegmentation(Stage):
    """Write `images/{training,validation}/*.png`, and `annotations/` beside it.

    Attributes:
        drawing: how the images are drawn, as in `make_demo_images`.
    """

    NAME: ClassVar[str] = DemoSegmentationRecord.STAGE
    USES_GPU: ClassVar[bool] = False

    options: DemoSegmentationOptions
    drawing: DemoImagesOptions

    def recipe(self, made: Made) -> Recipe:
        return recipe_of(self, {**defining_options(self.options), "drawing": defining_options(self.drawing)})

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        """Raises PipelineError when the drawing has too few digits."""
        from pipeline.data.demo_segmentation import write_demo_segmentation

        parts = Parts()
        with parts.timed("drawing", self.options.train_images + self.options.val_images):
            counts = write_demo_segmentation(folder, self.options, self.drawing)
        record = DemoSegmentationRecord(train_images=counts["train"], val_images=counts["val"])
        return record.built(parts.notes())
