"""Stage `fit_vqkd`: a VQ-KD (BEiT v2's tokenizer) is trained on one's own images, with a CLIP as its teacher.

The artifact holds `vqkd.pth` (the published layout: `vqkd.checkpoint=<artifact>/vqkd.pth` tokenizes with it), the
curves (`history.jsonl`) and the images that could not be decoded (`bad_images.jsonl`).
"""

import logging
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from pipeline.data.bad_images import require_allowed
from pipeline.data.split_rows import rows_of_splits
from pipeline.encoding.network_facts import facts_of
from pipeline.engine.fingerprint import defining_options
from pipeline.engine.stage import Made, Stage, recipe_of
from pipeline.engine.tracker import TrackedRun
from pipeline.engine.words import counted
from pipeline.stages.records import VQKDRecord
from pipeline.training.history import last_of_curves
from pipeline.training.vqkd_options import FitVQKDFields
from storage.artifact import Artifact, Built, Recipe
from storage.image_index import ImageIndex

logger = logging.getLogger("mapet.stages")


@dataclass(frozen=True)
class FitVQKD(FitVQKDFields, Stage):
    """Train a VQ-KD on one's own images."""

    NAME: ClassVar[str] = VQKDRecord.STAGE
    VERSION: ClassVar[int] = 2
    COMPARED: ClassVar[bool] = True

    def recipe(self, made: Made) -> Recipe:
        """Raises ModelError when the teacher cannot be loaded."""
        teacher = facts_of(self.teacher.options_in(made), made.settings)
        definition = {
            **defining_options(self.options),
            "teacher": teacher.definition,  # its weights are an input, where they lie does not matter
            "decoding": defining_options(self.decoding),
        }
        return recipe_of(self, definition, images=made[self.images.index].digest, teacher=teacher.digest)

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        """Train it.

        Raises:
            ModelError: the teacher cuts images into other patches, or there are fewer patches than codes.
            PipelineError: there are no training images, or too few for a step; too many are bad, or one changed; the
                loss is not finite.
        """
        from pipeline.data.square_crops import settle_bad_images
        from pipeline.training.launch import train_together
        from pipeline.training.loop import CHECKPOINTS
        from pipeline.training.vqkd_training import train_vqkd

        teacher = facts_of(self.teacher.options_in(made), made.settings).name
        options, index = self.options, ImageIndex.read(made[self.images.index].path)
        train, val = rows_of_splits(
            index, train=options.train_split, val=options.val_split, option="fit_vqkd.train_split"
        )
        vocabulary = self.options.network.vocabulary
        taught = counted(len(train), "training image")
        logger.info("fit_vqkd: a vocabulary of %d from %s, %s", vocabulary, teacher, taught)
        work = partial(train_vqkd, self, made.portable(*self.takes), folder)
        notes = train_together(work, made.settings, run, what="fit VQ-KD")
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        record = VQKDRecord(
            vocabulary=vocabulary,
            train_images=len(train),
            val_images=len(val),
            bad_images=settle_bad_images(folder),
            teacher=teacher,
            **last_of_curves(folder, _SUMMARISED),
            **notes.pop("usage"),
        )
        return record.built(notes)

    def accept(self, artifact: Artifact) -> None:
        require_allowed(VQKDRecord.of(artifact).bad_images, self.decoding, artifact.path)

    def label(self, made: Made) -> str:
        return f"fit_vqkd {self.options.network.vocabulary} codes"

    def distinction(self, made: Made) -> str:
        return f"{self.options.training.length.words}, seed {self.options.seed}"


_SUMMARISED = ("loss", "cosine", "commitment", "val_loss", "val_cosine", "val_commitment")
