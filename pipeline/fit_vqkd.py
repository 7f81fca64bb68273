"""Stage `fit_vqkd`: a VQ-KD (BEiT v2's tokenizer) is trained on one's own images, with a CLIP as its teacher.

The artifact holds `vqkd.pth` (the published layout: `vqkd.checkpoint=<artifact>/vqkd.pth` tokenizes with it), the
curves (`history.jsonl`) and the images that could not be decoded (`bad_images.jsonl`).
"""

import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.clip import ClipOptions
from models.kmeans_statistics import codebook_statistics
from models.options import Options, Seed
from models.state_files import write_checkpoint
from models.vqkd_codebook import VQKDCodebookOptions
from models.vqkd_learner import VQKDLearner, VQKDNetworkOptions, require_same_grid
from pipeline.data.batches import in_groups, on_device
from pipeline.data.image_batches import DecodingOptions, require_allowed
from pipeline.data.known_checksums import open_unchanged
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.data.square_crops import RandomSquare, SquareCrops, settle_bad_images
from pipeline.errors import PipelineError
from pipeline.fingerprint import defining_options, recipe
from pipeline.networks import encoder_for, network_definition
from pipeline.parts import Parts
from pipeline.settings import Settings
from pipeline.tracker import TrackedRun
from pipeline.training.history import last_of_curves
from pipeline.training.launch import train_together
from pipeline.training.loop import CHECKPOINTS, Reporter, Trainer
from pipeline.training.options import TrainingOptions
from pipeline.training.processes import Processes
from pipeline.training.threads import threads_for
from pipeline.words import counted
from pipeline.workspace import StageResult, Workspace
from storage.artifact import Artifact, Built
from storage.image_index import ImageIndex

STAGE = "fit_vqkd"
VERSION = 2
CHECKPOINT = "vqkd.pth"
FIT = "fit"  # what `vqkd.checkpoint` says to have one trained
AT_ONCE = 64  # images before and after training, whatever the settings are: the start is the same on every machine
COUNTED_IMAGES = 50_000  # whose tokens tell how evenly the vocabulary is used: 1,200 for each of 8192 codes
logger = logging.getLogger("mapet.stages")


def _published() -> TrainingOptions:
    return TrainingOptions(
        epochs=100,
        batch_size=512,
        peak_learning_rate=2e-4,  # 5e-5 for every 128 images of a step
        decay="cosine_after_warmup",
        first_learning_rate=0.0,
        warmup_epochs=10,
        weight_decay=1e-4,
        betas=(0.9, 0.99),
        gradient_clip=None,
    )


def _openai_vit() -> ClipOptions:
    return ClipOptions(model="ViT-B-16-quickgelu", pretrained="openai")


class FitVQKDOptions(Options):
    """A VQ-KD, its teacher, and how it is trained; defaults are BEiT v2's."""

    network: VQKDNetworkOptions = Field(default_factory=VQKDNetworkOptions)
    """What is trained."""

    codebook: VQKDCodebookOptions = Field(default_factory=VQKDCodebookOptions)
    """How its codes follow."""

    teacher: ClipOptions = Field(default_factory=_openai_vit)
    """The CLIP whose patch features are learned from; OpenAI's ViT-B/16, as published."""

    training: TrainingOptions = Field(default_factory=_published)
    """For how long and how fast. The published rate is 5e-5 for every 128 images of a step."""

    smallest_crop: float = Field(default=0.08, gt=0, le=1)
    """Least share of the image that a random crop shows."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """Chance of mirroring the image."""

    train_split: str = "train"
    """Split whose images are trained on."""

    val_split: str = "val"
    """Split on which the loss is measured too; it may be empty."""

    start_images: int = Field(default=2048, ge=1, le=2**31 - 1)
    """Training images, evenly spread, on whose patches the k-means runs that the codes start from; all where there are
    fewer. 2048 of 196 patches are 49 for each of 8192 codes."""

    seed: Seed = 0
    """Of initial weights and codes, order of the images, crops and mirroring."""


@dataclass(frozen=True)
class FitJob:
    """Everything that one process needs to know to train its part."""

    options: FitVQKDOptions
    images: Artifact
    source: ImageSourceOptions
    decoding: DecodingOptions
    folder: Path
    settings: Settings


def fit_vqkd(
    options: FitVQKDOptions,
    *,
    images: Artifact,
    source: ImageSourceOptions,
    decoding: DecodingOptions,
    workspace: Workspace,
) -> StageResult:
    """Train a VQ-KD, or find it trained.

    Raises:
        ModelError: the teacher cannot be loaded or cuts images into other patches; fewer patches than codes.
        PipelineError: there are no training images, or too few for a step; too many are bad, or one changed; the loss
            is not finite.
    """
    teacher = _teacher(options, workspace.settings)
    train, val = _splits(options, ImageIndex.read(images.path))
    definition = {
        **defining_options(options),
        "teacher": teacher.definition,  # its weights are an input, where they lie does not matter
        "decoding": defining_options(decoding),
    }
    made_from = recipe(STAGE, VERSION, definition, images=images.digest, teacher=teacher.digest)
    vocabulary = options.network.vocabulary
    taught = counted(len(train), "training image")
    logger.info("fit_vqkd: a vocabulary of %d from %s, %s", vocabulary, teacher.name, taught)

    def build(folder: Path, run: TrackedRun) -> Built:
        job = FitJob(options, images, source, decoding, folder, workspace.settings)
        notes = train_together(partial(train_vqkd, job), workspace.settings, run, what="fit VQ-KD")
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        counts = {"vocabulary": vocabulary, "train_images": len(train), "val_images": len(val)}
        curves, bad_images = last_of_curves(folder, _SUMMARISED), settle_bad_images(folder)
        summary = {**counts, **curves, **notes.pop("usage"), "bad_images": bad_images}
        return Built(summary, {"teacher": teacher.name, **notes})

    label = f"fit_vqkd {vocabulary} codes"
    distinction = f"{options.training.length.words}, seed {options.seed}"
    result = workspace.artifact(made_from, build, label=label, distinction=distinction, compared_with=STAGE)
    require_allowed(result.artifact, decoding)
    return result


@dataclass(frozen=True)
class _Teacher:
    """What is to be known of it before it teaches. Not the network itself: whoever keeps that in the stage's process
    keeps it on a GPU on which another process trains."""

    name: str
    digest: str
    definition: Mapping[str, object]


def _teacher(options: FitVQKDOptions, settings: Settings) -> _Teacher:
    teacher = encoder_for(options.teacher, settings)
    require_same_grid(options.network, teacher)
    return _Teacher(teacher.name, teacher.digest, network_definition(teacher))


def train_vqkd(job: FitJob, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    """One process's part. The first one writes the weights into the job's folder; returns notes on how it went, and
    under "usage" how evenly the training images use the codes."""
    options, settings = job.options, job.settings.of_one_process()
    index = ImageIndex.read(job.images.path)
    train, val = _splits(options, index)
    teacher = encoder_for(options.teacher, settings)
    feed = SquareCrops(
        index,
        open_unchanged(job.source, job.images, len(index), settings.layout),
        train_rows=train,
        val_rows=val,
        preprocessing=teacher.preprocessing,
        augmentation=RandomSquare(teacher.preprocessing.image_size, options.smallest_crop, options.flip),
        decoding=job.decoding,
        folder=job.folder,
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
        folder=job.folder,
        settings=settings,
        processes=processes,
        reporter=reporter,
    )
    speed = trainer.run()
    with threads_for(learner), parts.timed("usage", min(len(train), COUNTED_IMAGES)):
        usage = _usage(learner, feed, processes)
    processes.by_first(lambda: write_checkpoint(job.folder / CHECKPOINT, {"model": learner.checkpoint_state()}))
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
