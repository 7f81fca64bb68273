"""Stage `fit_vqkd`: a VQ-KD (BEiT v2's tokenizer) is trained on one's own images, with a CLIP as its teacher.

The artifact holds `vqkd.pth` (the published layout: `vqkd.checkpoint=<artifact>/vqkd.pth` tokenizes with it), the
curves (`history.jsonl`) and the images that could not be decoded (`bad_images.jsonl`).
"""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from models.clip.options import ClipOptions
from models.kmeans.statistics import codebook_statistics
from models.vqkd.learner import VQKDLearner, require_same_grid
from models.weights.state_files import write_checkpoint
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.image_batches import require_allowed
from pipeline.data.known_checksums import open_unchanged
from pipeline.data.square_crops import RandomSquare, SquareCrops, settle_bad_images
from pipeline.encoding.network_facts import facts_of
from pipeline.encoding.networks import encoder_for
from pipeline.engine.batches import in_groups, on_device
from pipeline.engine.errors import PipelineError
from pipeline.engine.fingerprint import defining_options
from pipeline.engine.parts import Parts
from pipeline.engine.processes import Processes
from pipeline.engine.stage import Made, Stage, recipe_of
from pipeline.engine.tracker import TrackedRun
from pipeline.engine.words import counted
from pipeline.stages.fit_vqkd_options import FitVQKDOptions
from pipeline.stages.inputs import VQKD_FILE, Images, Network
from pipeline.training.history import last_of_curves
from pipeline.training.launch import train_together
from pipeline.training.loop import CHECKPOINTS, Reporter, Trainer
from pipeline.training.threads import threads_for
from storage.artifact import Artifact, Built, Recipe
from storage.image_index import ImageIndex

AT_ONCE = 64  # images before and after training, whatever the settings are: the start is the same on every machine
COUNTED_IMAGES = 50_000  # whose tokens tell how evenly the vocabulary is used: 1,200 for each of 8192 codes
logger = logging.getLogger("mapet.stages")


@dataclass(frozen=True)
class FitVQKD(Stage):
    """Train a VQ-KD on one's own images.

    Attributes:
        teacher: the CLIP of the options, or the demo's.
    """

    NAME: ClassVar[str] = "fit_vqkd"
    VERSION: ClassVar[int] = 2
    COMPARED: ClassVar[bool] = True

    options: FitVQKDOptions
    teacher: Network[ClipOptions]
    images: Images
    decoding: DecodingOptions

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
        teacher = facts_of(self.teacher.options_in(made), made.settings).name
        train, val = _splits(self.options, ImageIndex.read(made[self.images.index].path))
        vocabulary = self.options.network.vocabulary
        taught = counted(len(train), "training image")
        logger.info("fit_vqkd: a vocabulary of %d from %s, %s", vocabulary, teacher, taught)
        work = partial(train_vqkd, self, made.portable(*self.takes), folder)
        notes = train_together(work, made.settings, run, what="fit VQ-KD")
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        counts = {"vocabulary": vocabulary, "train_images": len(train), "val_images": len(val)}
        curves, bad_images = last_of_curves(folder, _SUMMARISED), settle_bad_images(folder)
        summary = {**counts, **curves, **notes.pop("usage"), "bad_images": bad_images}
        return Built(summary, {"teacher": teacher, **notes})

    def accept(self, artifact: Artifact) -> None:
        require_allowed(artifact, self.decoding)

    def label(self, made: Made) -> str:
        return f"fit_vqkd {self.options.network.vocabulary} codes"

    def distinction(self, made: Made) -> str:
        return f"{self.options.training.length.words}, seed {self.options.seed}"


def train_vqkd(stage: FitVQKD, made: Made, folder: Path, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    """Do one process's part. The first one writes the weights into the folder; returns notes on how it went, and under
    "usage" how evenly the training images use the codes."""
    options, settings, images = stage.options, made.settings.of_one_process(), made[stage.images.index]
    index = ImageIndex.read(images.path)
    train, val = _splits(options, index)
    teacher = encoder_for(stage.teacher.options_in(made), settings)
    require_same_grid(options.network, teacher)
    feed = SquareCrops(
        index,
        open_unchanged(stage.images.source_in(made), images, len(index), settings.layout),
        train_rows=train,
        val_rows=val,
        preprocessing=teacher.preprocessing,
        augmentation=RandomSquare(teacher.preprocessing.image_size, options.smallest_crop, options.flip),
        decoding=stage.decoding,
        folder=folder,
        seed=options.seed,
        settings=settings,
    )
    learner = VQKDLearner(options.network, options.codebook, teacher, seed=options.seed).to(processes.device)
    learner.set_grad_checkpointing(settings.gradient_checkpointing)
    parts = Parts()
    with threads_for(learner), parts.timed("start", min(len(train), options.start_images)):
        _start_codes(learner, feed, options, processes)
    trainer = Trainer(
        learner,
        feed,
        options.training,
        seed=options.seed,
        folder=folder,
        settings=settings,
        processes=processes,
        reporter=reporter,
    )
    speed = trainer.run()
    with threads_for(learner), parts.timed("usage", min(len(train), COUNTED_IMAGES)):
        usage = _usage(learner, feed, processes)
    processes.by_first(lambda: write_checkpoint(folder / VQKD_FILE, {"model": learner.checkpoint_state()}))
    return {**parts.notes(speed), "usage": usage}


def _splits(options: FitVQKDOptions, index: ImageIndex) -> tuple[np.ndarray, np.ndarray]:
    train, val = (index.rows_of_split(name) for name in (options.train_split, options.val_split))
    if not len(train):
        splits = ", ".join(f"{name} ({count:,})" for name, count in index.splits.items())
        raise PipelineError(f"fit_vqkd.train_split={options.train_split!r} has no images; the index has {splits}")
    return train, val


@torch.no_grad()
def _start_codes(learner: VQKDLearner, feed: SquareCrops, options: FitVQKDOptions, processes: Processes) -> None:
    """Codes from the untrained network's vectors. Every process computes them, also before it goes on from a
    checkpoint, where they are overwritten: seconds, and a pure function of the seed."""
    rows = _spread(feed.train_rows, options.start_images)
    vectors = [learner.vectors(pixels).flatten(0, 1) for pixels in _squares(feed, rows, processes)]
    start = options.codebook.start_iterations
    learner.codebook.start(torch.cat(vectors), iterations=start, seed=options.seed)


def _usage(learner: VQKDLearner, feed: SquareCrops, processes: Processes) -> dict[str, float]:
    """How evenly the tokens of training images, whole and evenly spread, use the vocabulary."""
    vocabulary = len(learner.codebook.codes)
    own = processes.share(_spread(feed.train_rows, COUNTED_IMAGES))
    counts = torch.zeros(vocabulary, dtype=torch.int64, device=processes.device)
    learner.eval()
    for pixels in _squares(feed, own, processes):
        counts += learner.tokens(pixels).flatten().clamp(min=0).bincount(minlength=vocabulary)
    learner.train()
    found = codebook_statistics(processes.sum(counts).cpu().numpy())
    return {name: round(getattr(found, name), 6) for name in ("used_share", "perplexity", "largest_share")}


def _squares(feed: SquareCrops, rows: np.ndarray, processes: Processes) -> Iterator[Tensor]:
    """Pixels of the rows without augmentation, batch by batch on the device."""
    for batch in on_device(feed.validation(in_groups(rows, AT_ONCE)), processes.device):
        yield batch.inputs[0]


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Of ascending rows at most so many, evenly spread over the classes that stand one after the other."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


_SUMMARISED = ("loss", "cosine", "commitment", "val_loss", "val_cosine", "val_commitment")
