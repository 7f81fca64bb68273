"""Fine-tuning (Table 9): the whole network learns the labels, mean of the patches, fresh norm and head.

timm's layer decay, mixup, CutMix, RandAugment, erasing and label smoothing, with the released configuration's values.
Stochastic depth is drawn from the images' seeds, and mixing from the step's, so a resumed run, or one in other
processes, goes on as it would have. (The released code mixes the images of each GPU by themselves, in a proportion of
their own.)
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.data.random_erasing import RandomErasing
from timm.loss import SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from models.objectives.base import ObjectiveOutput
from models.vit.classifier import build_classifier, classify
from pipeline.data.labelled_images import Erase, Mix, Transform, with_noise
from pipeline.data.normalisation import Normalisation
from pipeline.engine.batches import Batch
from pipeline.engine.parts import Parts
from pipeline.engine.processes import Processes
from pipeline.stages.evaluate.evaluation_options import FineTuneOptions
from pipeline.stages.evaluate.kept_classifier import keep_classifier
from pipeline.stages.evaluate.protocol import (
    EvaluationJob,
    Metric,
    Protocol,
    judged_together,
    own_batches,
    random_crop,
    top_correct,
    write_top_scores,
)
from pipeline.training.loop import Reporter, images_at_once


class FineTuning(nn.Module):
    """`(pixels uint8 [B, 3, side, side], targets, seeds [B])`, and `(erased, noise)` of `LabelledImages` where there
    are any; targets are labels [B], or shares of classes [B, K] after mixing."""

    def __init__(self, model: VisionTransformer, options: FineTuneOptions) -> None:
        super().__init__()
        self.model, self.options, self.normalise = model, options, Normalisation()
        self.soft_loss = SoftTargetCrossEntropy()

    def forward(
        self,
        pixels: Tensor,
        targets: Tensor,
        seeds: Tensor,
        erased: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> ObjectiveOutput:
        images = self.normalise(pixels)
        if erased is not None and noise is not None:
            images = with_noise(images, erased, noise)
        logits = classify(self.model, images, seeds)
        if targets.ndim == 2:
            return ObjectiveOutput(self.soft_loss(logits, targets), {})
        smoothing = self.options.smoothing if self.training else 0.0
        right = (logits.detach().argmax(1) == targets).float().mean()
        return ObjectiveOutput(F.cross_entropy(logits, targets, label_smoothing=smoothing), {"top1": right})

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            self.model,
            weight_decay,
            no_weight_decay_list=self.model.no_weight_decay(),
            layer_decay=self.options.layer_decay,
        )
        return groups


def mixing(options: FineTuneOptions, classes: int) -> Mix | None:
    """Return timm's mixup and CutMix of a step, or None for neither: each image with its neighbour in the step's random
    order, all in one proportion; an odd last image is left as it is. Rounded to 8 bits, as timm's loader does."""
    if not options.mixup and not options.cutmix:
        return None
    mixup = Mixup(
        options.mixup, options.cutmix, label_smoothing=options.smoothing, num_classes=classes, switch_prob=0.5
    )

    def mix(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mixed, targets = pixels.float(), mixup_target(labels, classes, lam=1.0, smoothing=options.smoothing)
        even = len(pixels) // 2 * 2
        if even:
            # timm mixes the first with the last: 0, 2, 4, ..., 5, 3, 1 makes partners of neighbours.
            turned = torch.cat([torch.arange(0, even, 2), torch.arange(1, even, 2).flip(0)])
            mixed[turned], targets[turned] = mixup(mixed[turned], labels[turned])
        return mixed.round_().byte(), targets

    return mix


def erasing(options: FineTuneOptions) -> Erase | None:
    """Return timm's random erasing, with noise for every pixel; None where nothing is erased."""
    return RandomErasing(options.erasing, mode="pixel", max_count=1, device="cpu") if options.erasing else None


def train_transform(options: FineTuneOptions, image_size: int) -> Transform:
    return random_crop(image_size, options.smallest_crop, options.flip, auto_augment=options.auto_augment)


def fine_tune(job: EvaluationJob, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    """Do one process's part; return notes on how it went. The first process writes the scores."""
    options = job.options
    assert isinstance(options, FineTuneOptions)
    splits, size = job.splits(fraction=options.train_fraction), job.subject.backbone.image_size
    model = build_classifier(
        job.subject.backbone.model_copy(update={"drop_path_rate": options.drop_path_rate}),
        splits.classes,
        weights=None if job.subject.pretrained is None else job.subject.network(seed=options.seed).state_dict(),
        seed=options.seed,
    )
    model.set_grad_checkpointing(job.settings.gradient_checkpointing)
    feed = job.feed(
        splits,
        train=train_transform(options, size),
        crop_pct=options.crop_pct,
        mix=mixing(options, splits.classes),
        erase=erasing(options),
        repeats=options.repeats,
    )
    learner = FineTuning(model, options)
    speed, spent = job.train(learner, feed, options.training, processes, reporter), Parts()
    learner.eval()

    def judge(batch: Batch) -> Tensor:
        pixels, labels, seeds = batch.inputs
        return top_correct(classify(model, learner.normalise(pixels), seeds), labels)

    with spent.timed("judging", len(splits.val)):
        at_once = images_at_once(options.training, job.settings, processes)
        batches = own_batches(feed, splits.val, processes, size=at_once)
        correct = judged_together(model, batches, judge, processes, total=len(splits.val))

    def write() -> None:
        write_top_scores(job.folder, correct, splits.classes, "fine-tuned, mean of the patches, one centre crop")
        if job.keep_weights:
            keep_classifier(
                model,
                job.subject.backbone,
                job.folder,
                class_names=feed.index.classes,
                crop_pct=options.crop_pct,
                origin=job.subject.origin,
            )

    processes.by_first(write)
    return spent.notes(speed)


FINE_TUNE = Protocol(
    "Fine-tuning",
    (Metric("top1", "top1_finetune", "Fine-tuning, top-1"), Metric("top5", "top5_finetune")),
    fine_tune,
)
