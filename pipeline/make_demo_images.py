"""Stage `make_demo_images`: real handwritten digits on real photographs, as a folder of PNG files to look at."""

from pathlib import Path

from pipeline.data.demo_images import DemoImagesOptions, render_demo_images
from pipeline.fingerprint import recipe
from pipeline.tracker import TrackedRun
from pipeline.workspace import StageResult, Workspace
from storage.artifact import Built

STAGE = "make_demo_images"
VERSION = 1


def make_demo_images(options: DemoImagesOptions, *, workspace: Workspace) -> StageResult:
    """Write `train/<class>/*.png` and `val/<class>/*.png`; no download, the pictures ship with scikit-learn."""

    def build(folder: Path, run: TrackedRun) -> Built:
        made = render_demo_images(folder, options)
        return Built({"train_images": made.counts["train"], "val_images": made.counts["val"]}, {})

    return workspace.artifact(recipe(STAGE, VERSION, options), build)
