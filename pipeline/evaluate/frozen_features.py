"""Probes of features that are computed once, without augmentation: k-NN, and linear heads that train in seconds.

k-NN votes as in DINO (arXiv:2104.14294): the k training images most similar by cosine, weighted by exp(similarity / t).
Features: last block, class token and mean of the patches, without the final norm, standardised with the training
images' mean and deviation: what all images have in common would drown the rest. A feature that is the same in all
training images, or in the only one, has no deviation and keeps its scale. Numbers of this mode go by names of
their own: without augmentation they are lower than those of `linear_probe`, or higher when there are few images.
"""

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from models.heads.linear import LinearHeads
from models.objectives.base import ObjectiveOutput
from pipeline.data.batches import Batch
from pipeline.data.labelled_images import LabelledSplits
from pipeline.evaluate.linear_probe import LinearProbing, output_of
from pipeline.evaluate.protocol import EvaluationJob, LabelledOptions, MemoryFeed, batches_of, centre_crop
from pipeline.evaluate.scores import score, write_scores
from pipeline.memory import Halving
from pipeline.progress import progress
from pipeline.training.loop import Reporter
from pipeline.training.options import TrainingOptions
from pipeline.training.processes import Processes

_NO_DEVIATION = 1e-6  # rounding, of features of size one
_BLOCK = 1024  # images whose similarities to all training images exist at once


def _minutes() -> TrainingOptions:
    return TrainingOptions(
        epochs=50,
        batch_size=1024,
        peak_learning_rate=1e-3,
        lowest_learning_rate=0.0,
        warmup_epochs=0,
        weight_decay=1e-4,
        gradient_clip=None,
        precision="fp32",
        validation_epochs=50,
    )


class FrozenFeaturesOptions(LabelledOptions):
    """Probes of cached features."""

    training: TrainingOptions = Field(default_factory=_minutes)
    """Of the linear heads."""

    neighbours: int = Field(default=20, ge=1)
    """k of k-NN."""

    temperature: float = Field(default=0.07, gt=0)
    """t of k-NN."""

    crop_pct: float = Field(default=0.875, gt=0, le=1)
    """Share of the shorter side that is seen."""


class HeadTraining(nn.Module):
    """`(features [B, 2, D], labels [B])`."""

    def __init__(self, heads: LinearHeads) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, features: Tensor, labels: Tensor) -> ObjectiveOutput:
        return output_of(self.heads, features[None], labels)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return self.heads.parameter_groups(weight_decay)


def frozen_features(job: EvaluationJob, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    """One process's part; every process computes the features, the first one writes the scores."""
    options = job.options
    assert isinstance(options, FrozenFeaturesOptions)
    splits, backbone = job.splits(), job.subject.network(seed=options.seed)
    last = len(backbone.blocks) - 1
    heads = LinearHeads(
        backbone.embed_dim,
        splits.classes,
        blocks=(last,),
        learning_rates=(options.training.peak_learning_rate,),
        given_rate=options.training.peak_learning_rate,
        seed=options.seed,
    )
    probing = LinearProbing(backbone, heads).to(processes.device).eval()
    features, labels = _features(job, probing, splits, processes, crop_pct=options.crop_pct)
    standard = standardised(features, len(splits.train))
    trained = len(splits.train)
    everything = np.arange(len(labels))
    feed = MemoryFeed(lambda rows: (standard[rows], labels[rows]), everything[:trained], everything[trained:])
    speed = job.train(HeadTraining(heads), feed, options.training, processes, reporter)
    if processes.is_first:
        train, val = slice(trained), slice(trained, None)
        with torch.no_grad():
            logits = heads.cpu()(standard[None, val])[heads.usual]
        linear = (logits.argmax(1) == labels[val]).numpy()
        guesses = nearest_neighbours(
            standard[train].flatten(1),
            labels[train],
            standard[val].flatten(1),
            classes=splits.classes,
            k=options.neighbours,
            temperature=options.temperature,
        )
        knn = (guesses == labels[val]).numpy()
        words = "last block, class+mean, cached without augmentation"
        scores = [score("frozen_linear_top1", linear, f"linear head: {words}")]
        scores += [score("knn_top1", knn, f"{options.neighbours} nearest neighbours: {words}")]
        write_scores(job.folder, scores, {"frozen_linear_top1": linear, "knn_top1": knn})
    processes.wait_for_all()
    return speed


def nearest_neighbours(
    train: Tensor, labels: Tensor, queries: Tensor, *, classes: int, k: int, temperature: float
) -> Tensor:
    """The class of each query by weighted vote of its k most similar training features.

    Args:
        train: [n, F] with `labels` int64 [n].
        queries: [m, F].

    Returns:
        int64 [m].
    """
    bank = nn.functional.normalize(train, dim=1)
    found = []
    for block in nn.functional.normalize(queries, dim=1).split(_BLOCK):
        similarity, place = (block @ bank.T).double().topk(min(k, len(bank)), dim=1)
        # Of the distance to the best, which changes no winner: exp(1 / 0.011) is more than 32 bits hold.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(block), classes).scatter_add_(1, labels[place], weights)
        found.append(votes.argmax(1))
    return torch.cat(found)


def _features(
    job: EvaluationJob, probing: LinearProbing, splits: LabelledSplits, processes: Processes, *, crop_pct: float
) -> tuple[Tensor, Tensor]:
    """[n, 2, D] and labels [n] of training images, then of validation images, on the CPU."""
    transform = centre_crop(job.subject.backbone.image_size, crop_pct)
    rows = np.concatenate([splits.train, splits.val])
    feed, size = job.feed(splits, train=transform, val=transform), job.settings.encoder_batch()
    features, labels = [], []
    compute = Halving[Batch, Tensor](lambda batch: probing.features(batch.inputs[0])[0].cpu())
    with progress("features", len(rows)) as advance:
        for batch in batches_of(feed, rows, processes, size=size):
            features += [found for _, found in compute(batch)]
            labels.append(batch.inputs[1].cpu())
            advance(len(batch))
    return torch.cat(features), torch.cat(labels)


def standardised(features: Tensor, training: int) -> Tensor:
    """With mean and deviation of the first `training` images."""
    mean, std = features[:training].mean(0), features[:training].std(0, correction=0)
    return (features - mean) / std.where(std > _NO_DEVIATION, 1.0)
