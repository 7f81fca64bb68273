"""Stage `make_demo_segmentation`: some of the demo's images with a class for every pixel, in ADE20K's layout."""

from pathlib import Path

from pipeline.data.demo_images import DemoImagesOptions
from pipeline.data.demo_segmentation import DemoSegmentationOptions, write_demo_segmentation
from pipeline.fingerprint import defining_options, recipe
from pipeline.parts import Parts
from pipeline.tracker import TrackedRun
from pipeline.workspace import StageResult, Workspace
from storage.artifact import Built

STAGE = "make_demo_segmentation"
VERSION = 1


def make_demo_segmentation(
    options: DemoSegmentationOptions, *, drawing: DemoImagesOptions, workspace: Workspace
) -> StageResult:
    """Write `images/{training,validation}/*.png`, and `annotations/` beside it.

    Args:
        drawing: how the images are drawn, as in `make_demo_images`.

    Raises:
        PipelineError: the drawing has too few digits.
    """

    def build(folder: Path, run: TrackedRun) -> Built:
        parts = Parts()
        with parts.timed("drawing", options.train_images + options.val_images):
            counts = write_demo_segmentation(folder, options, drawing)
        return Built({"train_images": counts["train"], "val_images": counts["val"]}, parts.notes())

    definition = {**defining_options(options), "drawing": defining_options(drawing)}
    return workspace.artifact(recipe(STAGE, VERSION, definition), build)
