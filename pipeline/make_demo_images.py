"""Stage `make_demo_images`: real handwritten digits on real photographs, as a folder of PNG files to look at."""

import time
from pathlib import Path

from pipeline.data.demo_images import DemoImagesOptions, render_demo_images
from pipeline.fingerprint import recipe
from pipeline.parts import Parts
from pipeline.tracker import TrackedRun
from pipeline.workspace import StageResult, Workspace
from storage.artifact import Built

STAGE = "make_demo_images"
VERSION = 1


def make_demo_images(options: DemoImagesOptions, *, workspace: Workspace) -> StageResult:
    """Write `train/<class>/*.png` and `val/<class>/*.png`; no download, the pictures ship with scikit-learn."""

    def build(folder: Path, run: TrackedRun) -> Built:
        started = time.monotonic()
        made = render_demo_images(folder, options)
        parts = Parts()
        parts.add("drawing", sum(made.counts.values()), time.monotonic() - started)
        return Built({"train_images": made.counts["train"], "val_images": made.counts["val"]}, parts.notes())

    return workspace.artifact(recipe(STAGE, VERSION, options), build)
