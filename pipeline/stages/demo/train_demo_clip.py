"""Stage `train_demo_clip`: the demo's own CLIP, trained on captions made from the train split's labels.

It takes the place of OpenAI's RN50x64, which needs a download; the stages that follow cannot tell the difference.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from models.clip.demo_options import DemoClipOptions
from pipeline.data.inputs import Images
from pipeline.data.known_checksums import open_unchanged
from pipeline.engine.fingerprint import defining_options
from pipeline.engine.parts import Parts
from pipeline.engine.progress import progress
from pipeline.engine.stage import Made, Stage, recipe_of
from pipeline.engine.stops import raise_if_stopped
from pipeline.engine.tracker import TrackedRun
from pipeline.stages.records import DemoClipRecord
from storage.artifact import Built, Recipe
from storage.image_index import ImageIndex


@dataclass(frozen=True)
class TrainDemoClip(Stage):
    """Train the demo's CLIP and save it as a directory that open_clip loads (`local-dir:<artifact>`)."""

    NAME: ClassVar[str] = DemoClipRecord.STAGE
    USES_GPU: ClassVar[bool] = False

    options: DemoClipOptions
    images: Images

    def recipe(self, made: Made) -> Recipe:
        return recipe_of(self, defining_options(self.options), images=made[self.images.index].digest)

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        from models.clip.demo import class_words, save_demo_clip, train_demo_clip, zero_shot_accuracy
        from pipeline.data.decoded_split import load_split
        from pipeline.engine.threads import one_thread

        options, images = self.options, made[self.images.index]
        index = ImageIndex.read(images.path)
        words = class_words(index.classes)
        unchanged = open_unchanged(self.images.source_in(made), images, len(index), made.settings.layout)
        train_images, train_labels = load_split(index, unchanged, "train", options.image_size)
        val_images, val_labels = load_split(index, unchanged, "val", options.image_size)
        steps = options.epochs * (len(train_labels) // options.batch_size)
        with progress("train demo CLIP", steps, unit="steps") as advance:

            def on_step(step: int, total: int, loss: float) -> None:
                run.metrics({"loss": loss}, step=step)
                advance(1)
                raise_if_stopped()

            parts = Parts()
            with one_thread(), parts.timed("training", steps * options.batch_size):
                model = train_demo_clip(train_images, train_labels, words, options, on_step=on_step)
        save_demo_clip(model, folder, options)
        with one_thread():
            accuracy = zero_shot_accuracy(model, val_images, val_labels, words)
        record = DemoClipRecord(zero_shot_accuracy=round(accuracy, 4), steps=steps, val_images=len(val_labels))
        return record.built(parts.notes())
