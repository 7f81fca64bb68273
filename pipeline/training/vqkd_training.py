"""A process's part in the training of a VQ-KD."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.kmeans.statistics import codebook_statistics
from models.vqkd.learner import VQKDLearner, require_same_grid
from models.weights.state_files import write_checkpoint
from pipeline.data.inputs import VQKD_FILE
from pipeline.data.known_checksums import open_unchanged
from pipeline.data.split_rows import rows_of_splits
from pipeline.data.square_crops import RandomSquare, SquareCrops
from pipeline.encoding.networks import encoder_for
from pipeline.engine.batches import in_groups, on_device
from pipeline.engine.parts import Parts
from pipeline.engine.processes import Processes
from pipeline.engine.stage import Made
from pipeline.engine.threads import threads_for
from pipeline.training.loop import Reporter, Trainer
from pipeline.training.vqkd_options import COUNTED_IMAGES, FitVQKDFields, FitVQKDOptions
from storage.image_index import ImageIndex

AT_ONCE = 64  # images before and after training, whatever the settings are: the start is the same on every machine


def train_vqkd(
    stage: FitVQKDFields, made: Made, folder: Path, processes: Processes, reporter: Reporter
) -> dict[str, Any]:
    """Do one process's part. The first one writes the weights into the folder; returns notes on how it went, and under
    "usage" how evenly the training images use the codes."""
    options, images, settings = stage.options, made[stage.images.index], made.settings.of_one_process()
    index = ImageIndex.read(images.path)
    train, val = rows_of_splits(index, train=options.train_split, val=options.val_split, option="fit_vqkd.train_split")
    encoder = encoder_for(stage.teacher.options_in(made), settings)
    require_same_grid(options.network, encoder)
    feed = SquareCrops(
        index,
        open_unchanged(stage.images.source_in(made), images, len(index), settings.layout),
        train_rows=train,
        val_rows=val,
        preprocessing=encoder.preprocessing,
        augmentation=RandomSquare(encoder.preprocessing.image_size, options.smallest_crop, options.flip),
        decoding=stage.decoding,
        folder=folder,
        seed=options.seed,
        settings=settings,
    )
    learner = VQKDLearner(options.network, options.codebook, encoder, seed=options.seed).to(processes.device)
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


@torch.no_grad()
def _start_codes(learner: VQKDLearner, feed: SquareCrops, options: FitVQKDOptions, processes: Processes) -> None:
    """Start codes from the untrained network's vectors. Every process computes them, also before it goes on from a
    checkpoint, where they are overwritten: seconds, and a pure function of the seed."""
    rows = _spread(feed.train_rows, options.start_images)
    vectors = [learner.vectors(pixels).flatten(0, 1) for pixels in _squares(feed, rows, processes)]
    start = options.codebook.start_iterations
    learner.codebook.start(torch.cat(vectors), iterations=start, seed=options.seed)


def _usage(learner: VQKDLearner, feed: SquareCrops, processes: Processes) -> dict[str, float]:
    """Return how evenly the tokens of training images, whole and evenly spread, use the vocabulary."""
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
    """Yield pixels of the rows without augmentation, batch by batch on the device."""
    for batch in on_device(feed.validation(in_groups(rows, AT_ONCE)), processes.device):
        yield batch.inputs[0]


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Choose of ascending rows at most so many, evenly spread over the classes that stand one after the other."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]
