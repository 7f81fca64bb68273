"""Stage `make_demo_images`: real handwritten digits on real photographs, as a folder of PNG files to look at."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.data.demo_options import DemoImagesOptions
from pipeline.engine.fingerprint import defining_options
from pipeline.engine.parts import Parts
from pipeline.engine.stage import Made, Stage, recipe_of
from pipeline.engine.tracker import TrackedRun
from pipeline.stages.records import DemoImagesRecord
from storage.artifact import Built, Recipe


@dataclass(frozen=True)
class MakeDemoImages(Stage):
    """Write `train/<class>/*.png` and `val/<class>/*.png`; no download, the pictures ship with scikit-learn."""

    NAME: ClassVar[str] = DemoImagesRecord.STAGE
    USES_GPU: ClassVar[bool] = False

    options: DemoImagesOptions

    def recipe(self, made: Made) -> Recipe:
        return recipe_of(self, defining_options(self.options))

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        from pipeline.data.demo_images import render_demo_images

        started = time.monotonic()
        drawn = render_demo_images(folder, self.options)
        parts = Parts()
        parts.add("drawing", sum(drawn.counts.values()), time.monotonic() - started)
        record = DemoImagesRecord(train_images=drawn.counts["train"], val_images=drawn.counts["val"])
        return record.built(parts.notes())
