"""Linear probes: how well a linear layer on the frozen backbone tells the classes apart.

One pass over augmented images trains a grid of heads at once, every block, three poolings, several learning rates
(after BEiT's linear evaluation; the paper says 50 epochs, AdamW, 4e-3, cosine, and not which feature it reads).
Reported are the paper's reading (last block, class token and mean of the patches, 4e-3), the last block's best, and the
best of all. The two best ones were chosen on the images that they are measured on.
"""

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.heads.linear import LinearHeads
from models.objectives.base import ObjectiveOutput
from pipeline.data.normalisation import Normalisation
from pipeline.engine.batches import Batch
from pipeline.engine.parts import Parts
from pipeline.engine.processes import Processes
from pipeline.stages.evaluate.evaluation_options import LinearProbeOptions
from pipeline.stages.evaluate.protocol import (
    EvaluationJob,
    Metric,
    Protocol,
    judged_together,
    own_batches,
    random_crop,
    top_k_correct,
)
from pipeline.stages.evaluate.scores import Score, score, write_scores
from pipeline.training.loop import Reporter, images_at_once


class LinearProbing(nn.Module):
    """`(pixels uint8 [B, 3, side, side], labels [B], seeds)`: the backbone gives features and learns nothing."""

    def __init__(self, backbone: VisionTransformer, heads: LinearHeads) -> None:
        super().__init__()
        self.backbone, self.heads, self.normalise = backbone.requires_grad_(False), heads, Normalisation()

    def train(self, mode: bool = True) -> "LinearProbing":
        super().train(mode)
        self.backbone.eval()  # no stochastic depth
        return self

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Return [L, B, 2, D]: class token and mean of the patches after each block, without the final norm.

        Args:
            pixels: uint8 [B, 3, side, side].
        """
        found = self.backbone.forward_intermediates(
            self.normalise(pixels),
            indices=self.heads.blocks,
            return_prefix_tokens=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        maps = cast(list[tuple[Tensor, Tensor]], found)
        both = torch.stack([torch.stack([prefix[:, 0], patches.mean(1)], dim=1) for patches, prefix in maps])
        return both.float() if both.dtype.itemsize < 4 else both

    def forward(self, pixels: Tensor, labels: Tensor, seeds: Tensor) -> ObjectiveOutput:
        return output_of(self.heads, self.features(pixels), labels)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return self.heads.parameter_groups(weight_decay)


def output_of(heads: LinearHeads, features: Tensor, labels: Tensor) -> ObjectiveOutput:
    """Return the sum of all heads' losses, so that each learns as if alone; of the usual head its own (`head_loss`),
    and how often it is right.

    In float32 whatever autocast is around, as in BEiT's linear evaluation: a head of bfloat16 knows three digits. A
    mean of the losses would be their sum with an epsilon of AdamW as many times as large as there are heads.

    Args:
        features: [L, B, 2, D].
    """
    with torch.autocast(features.device.type, enabled=False):
        logits = heads(features)
        loss = heads.loss(logits, labels)
    usual = logits[heads.usual].detach()
    right = (usual.argmax(1) == labels).float().mean()
    return ObjectiveOutput(loss, {"top1": right, "head_loss": F.cross_entropy(usual, labels)})


def linear_probe(job: EvaluationJob, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    """Do one process's part; return notes on how it went. The first process writes the scores."""
    options, size = job.options, job.subject.backbone.image_size
    assert isinstance(options, LinearProbeOptions)
    splits, backbone = job.splits(), job.subject.network(seed=options.seed)
    blocks = range(len(backbone.blocks))
    given = options.training.peak_learning_rate
    heads = LinearHeads(
        backbone.embed_dim,
        splits.classes,
        blocks=tuple(blocks) if options.all_blocks else (blocks[-1],),
        learning_rates=tuple(factor * given for factor in options.learning_rate_factors),
        given_rate=given,
        seed=options.seed,
    )
    cropped = random_crop(size, options.smallest_crop, options.flip)
    feed = job.feed(splits, train=cropped, crop_pct=options.crop_pct)
    learner = LinearProbing(backbone, heads)
    # The optimizer's rate is the largest of the grid; groups scale it down.
    largest = given * max(options.learning_rate_factors)
    training = options.training.model_copy(update={"peak_learning_rate": largest})
    speed, spent = job.train(learner, feed, training, processes, reporter), Parts()
    learner.eval()

    def judge(batch: Batch) -> Tensor:
        logits = heads(learner.features(batch.inputs[0]))
        return torch.stack([top_k_correct(one, batch.inputs[1], 1) for one in logits], dim=1)

    with spent.timed("judging", len(splits.val)):
        at_once = images_at_once(options.training, job.settings, processes)
        batches = own_batches(feed, splits.val, processes, size=at_once)
        judged = judged_together(learner, batches, judge, processes, total=len(splits.val))
    correct = judged.numpy().T.copy()  # [H, images]
    found = readings(heads, correct)
    picked = {score.name: correct[head] for score, head in found}
    scores = [score for score, _ in found]
    processes.by_first(lambda: write_scores(job.folder, scores, {**picked, "heads": correct}))
    return spent.notes(speed)


def readings(heads: LinearHeads, correct: np.ndarray) -> list[tuple[Score, int]]:
    """Return the paper's reading, the last block's best, the best of all, each with the index of its head."""
    choices, accuracy = heads.choices, correct.mean(1)
    of_last = [i for i, choice in enumerate(choices) if choice.block == heads.blocks[-1]]
    picked = {
        "top1": (heads.usual, "the paper's reading"),
        "top1_last": (max(of_last, key=lambda i: accuracy[i]), "best head of the last block"),
        "top1_best": (int(accuracy.argmax()), "best head of all, chosen on the validation images"),
    }
    return [(score(name, correct[i], f"{words}: {choices[i].words}"), i) for name, (i, words) in picked.items()]


LINEAR_PROBE = Protocol("Linear probe", (Metric("top1", "linear_probe_top1", "Linear probe, top-1"),), linear_probe)
