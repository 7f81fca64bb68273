"""Probes of features that are computed once, without augmentation: k-NN, and linear heads that train in seconds.

k-NN votes as in DINO (arXiv:2104.14294): the k training images most similar by cosine, weighted by exp(similarity / t).
Features: last block, class token and mean of the patches, without the final norm, standardised with the training
images' mean and deviation: what all images have in common would drown the rest. A feature that is the same in all
training images, or in the only one, has no deviation and keeps its scale. Numbers of this mode go by names of
their own: without augmentation they are lower than those of `linear_probe`, or higher when there are few images.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.heads.linear import LinearHeads
from models.objectives.base import ObjectiveOutput
from pipeline.data.labelled_images import LabelledSplits
from pipeline.engine.batches import Batch, WaitClock, in_groups, on_device
from pipeline.engine.parts import Parts
from pipeline.engine.processes import Processes
from pipeline.engine.progress import progress
from pipeline.stages.evaluate.evaluation_options import FrozenFeaturesOptions
from pipeline.stages.evaluate.linear_probe import LinearProbing, output_of
from pipeline.stages.evaluate.protocol import (
    EvaluationJob,
    MemoryFeed,
    Metric,
    Protocol,
    centre_crop,
    judged_together,
    own_batches,
)
from pipeline.stages.evaluate.scores import score, write_scores
from pipeline.training.loop import Reporter

_NO_DEVIATION = 1e-6  # rounding, of features of size one
# Images whose similarities to so many training images exist at once: 0.3 GB, beside as much of their features.
_BLOCK, _BANK = 1024, 2**16


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
    """Do one process's part: its share of the features, the heads, and its share of the judging; return notes on how it
    went. The first process writes the scores."""
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
    parts, clock = Parts(), WaitClock()
    with parts.timed("features", len(splits.train) + len(splits.val)):
        found = _features(job, probing, splits, processes, clock, crop_pct=options.crop_pct)
    rows = np.arange(len(found.labels))
    feed = MemoryFeed(found.standardised, rows[: found.training], rows[found.training :])
    speed = job.train(HeadTraining(heads), feed, options.training, processes, reporter)

    def judge(batch: Batch) -> Tensor:
        features, labels = batch.inputs
        return heads(features[None])[heads.usual].argmax(1) == labels

    own = own_batches(feed, feed.val_rows, processes, size=_BLOCK)
    linear = judged_together(heads, own, judge, processes, total=len(splits.val)).numpy()
    with parts.timed("neighbours", len(splits.train) * len(splits.val)):
        knn = _judged_by_neighbours(feed, options, splits.classes, processes).numpy()
    words = "last block, class+mean, cached without augmentation"
    scores = [score("frozen_linear_top1", linear, f"linear head: {words}")]
    scores += [score("knn_top1", knn, f"{options.neighbours} nearest neighbours: {words}")]
    processes.by_first(lambda: write_scores(job.folder, scores, {"frozen_linear_top1": linear, "knn_top1": knn}))
    # Of the images; the heads see each of them many times, as numbers.
    waited = round(clock.seconds / parts.seconds("features"), 4)
    return parts.notes({**speed, "images_per_second": parts.rate("features"), "data_wait_share": waited})


@torch.no_grad()
def _judged_by_neighbours(
    feed: MemoryFeed, options: FrozenFeaturesOptions, classes: int, processes: Processes
) -> Tensor:
    """Return bool [images]: whether the neighbours of each validation image vote for its class."""
    own = list(own_batches(feed, feed.val_rows, processes, size=_BLOCK))
    bank = on_device(feed.validation(in_groups(feed.train_rows, _BANK)), processes.device)
    guesses = nearest_neighbours(
        (batch.inputs for batch in bank),
        [batch.inputs[0].flatten(1) for batch in own],
        classes=classes,
        k=options.neighbours,
        temperature=options.temperature,
    )
    right = [guess == batch.inputs[1] for guess, batch in zip(guesses, own, strict=True)]
    return processes.joined([some.cpu() for some in right], len(feed.val_rows))


def nearest_neighbours(
    bank: Iterable[tuple[Tensor, ...]], queries: Sequence[Tensor], *, classes: int, k: int, temperature: float
) -> list[Tensor]:
    """Return the class of each query by weighted vote of its k most similar training features.

    Args:
        bank: of some training images at a time the features [n, ...] and labels int64 [n].
        queries: some at a time, [m, F].

    Returns:
        int64 [m] of each of `queries`.
    """
    blocks = [nn.functional.normalize(block, dim=1) for block in queries]
    nearest = [(block.new_empty(len(block), 0), block.new_empty(len(block), 0, dtype=torch.int64)) for block in blocks]
    for features, labels in bank:
        some = nn.functional.normalize(features.flatten(1), dim=1)
        nearest = [_nearer(found, block @ some.T, labels, k) for found, block in zip(nearest, blocks, strict=True)]
    return [_vote(*found, classes=classes, temperature=temperature) for found in nearest]


def _nearer(found: tuple[Tensor, Tensor], similarity: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the similarity and label of the k nearest: of those found before, and of more training images [m, n]."""
    near, place = similarity.topk(min(k, len(labels)), dim=1)
    both, theirs = torch.cat([found[0], near], 1), torch.cat([found[1], labels[place]], 1)
    kept, place = both.topk(min(k, both.shape[1]), dim=1)
    return kept, theirs.gather(1, place)


def _vote(similarity: Tensor, labels: Tensor, *, classes: int, temperature: float) -> Tensor:
    """Return the class that the neighbours [m, k] elect, the nearest first."""
    # Of the distance to the best, which changes no winner: exp(1 / 0.011) is more than 32 bits hold.
    exact = similarity.double()
    weights = ((exact - exact[:, :1]) / temperature).exp()
    return weights.new_zeros(len(labels), classes).scatter_add_(1, labels, weights).argmax(1)


@dataclass(frozen=True)
class Features:
    """What the backbone says of the images, of which the first `training` are for training.

    Attributes:
        values: [n, 2, D] on the CPU.
        labels: int64 [n].
        mean, deviation: [2, D] of the training images.
    """

    values: Tensor
    labels: Tensor
    training: int
    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, values: Tensor, labels: Tensor, training: int) -> "Features":
        mean, std = values[:training].mean(0), values[:training].std(0, correction=0)
        return cls(values, labels, training, mean, std.where(std > _NO_DEVIATION, 1.0))

    def standardised(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the features of some images, by mean and deviation of the training images, and the labels. All of them
        at once would be another 8 GB for ImageNet."""
        return (self.values[rows] - self.mean) / self.deviation, self.labels[rows]


def _features(
    job: EvaluationJob,
    probing: LinearProbing,
    splits: LabelledSplits,
    processes: Processes,
    clock: WaitClock,
    *,
    crop_pct: float,
) -> Features:
    """Compute the features of training images, then of validation images: each process computes its share, and all have
    all of them."""
    central = centre_crop(job.subject.backbone.image_size, crop_pct)
    rows = np.concatenate([splits.train, splits.val])
    feed, size = job.feed(splits, train=central, crop_pct=crop_pct), job.settings.encoder_batch()

    def batches() -> Iterator[Batch]:
        shown = progress("features", len(rows)) if processes.is_first else nullcontext(lambda _: None)
        with shown as advance:
            for batch in clock.timed(own_batches(feed, rows, processes, size=size)):
                yield batch
                advance(len(batch) * processes.size)

    values = judged_together(
        probing, batches(), lambda batch: probing.features(batch.inputs[0])[0], processes, total=len(rows)
    )
    labels = torch.from_numpy(feed.index.labels[rows].astype(np.int64))
    return Features.of(values, labels, len(splits.train))


def _parts(train: int, val: int) -> dict[str, int]:
    return {"features": train + val, "neighbours": train * val}


FROZEN_FEATURES = Protocol(
    "Frozen features",
    (
        Metric("knn_top1", "knn_top1", "k-NN, top-1"),
        Metric("frozen_linear_top1", "frozen_linear_top1", "Linear head on cached features, top-1"),
    ),
    frozen_features,
    parts=_parts,
)
