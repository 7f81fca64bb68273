"""Fine-tuning (Table 9): the whole network learns the labels, mean of the patches, fresh norm and head.

timm's layer decay, mixup, CutMix, RandAugment, erasing and label smoothing, with the released configuration's values.
Stochastic depth is drawn from the images' seeds, and mixing from the batch's, so a resumed run goes on as it would
have.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from models.classifier import build_classifier, classify
from models.objectives.base import ObjectiveOutput
from pipeline.data.batches import Batch
from pipeline.data.labelled_images import Mix, Transform
from pipeline.evaluate.protocol import (
    EvaluationJob,
    LabelledOptions,
    batches_of,
    centre_crop,
    random_crop,
    write_top_scores,
)
from pipeline.memory import Halving
from pipeline.parts import Parts
from pipeline.training.loop import Reporter
from pipeline.training.options import TrainingOptions
from pipeline.training.processes import Processes


def _table_9() -> TrainingOptions:
    return TrainingOptions(
        epochs=100,
        batch_size=1024,
        peak_learning_rate=5e-4,
        lowest_learning_rate=1e-6,
        warmup_epochs=20,
        gradient_clip=None,
    )


class FineTuneOptions(LabelledOptions):
    """Fine-tuning; defaults are Table 9's for ViT-B."""

    training: TrainingOptions = Field(default_factory=_table_9)
    """For how long and how fast."""

    layer_decay: float = Field(default=0.65, gt=0, le=1)
    """Each block learns so much slower than the one above it; 1: all learn alike (ViT-T)."""

    drop_path_rate: float = Field(default=0.1, ge=0, lt=1)
    """Stochastic depth of the last block, growing linearly from 0."""

    mixup: float = Field(default=0.8, ge=0, le=1000)
    """Alpha of mixup; 0: none."""

    cutmix: float = Field(default=1.0, ge=0, le=1000)
    """Alpha of CutMix; 0: none. Which of the two a batch gets is an even chance."""

    smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Label smoothing."""

    auto_augment: str = "rand-m9-mstd0.5"
    """timm's name of the RandAugment policy, the released one (without `inc1`); empty: none."""

    erasing: float = Field(default=0.25, ge=0, le=1)
    """Chance of erasing a rectangle of the image."""

    smallest_crop: float = Field(default=0.08, gt=0, le=1)
    """Least share of the image that a random crop shows."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """Chance of mirroring the image."""

    crop_pct: float = Field(default=0.9, ge=0.1, le=1)
    """Share of the shorter side that evaluation crops."""

    train_fraction: float = Field(default=1.0, gt=0, le=1)
    """Part of each class's training images that is used."""

    @field_validator("auto_augment")
    @classmethod
    def _is_known_to_timm(cls, policy: str) -> str:
        # timm says nothing of a section that it does not know when no number is in it.
        sections = policy.split("-")[1:]
        try:
            if policy:
                random_crop(32, 1.0, 0.0, auto_augment=policy)
            known = all(any(map(str.isdigit, section)) or section.startswith("t") for section in sections)
        except (AssertionError, KeyError, ValueError):
            known = False
        if not known:
            raise ValueError("expected a policy of timm, such as rand-m9-mstd0.5, augmix-m5-w4, original, or nothing")
        return policy


class FineTuning(nn.Module):
    """`(pixels [B, 3, S, S], targets, seeds [B])`; targets are labels [B], or shares of classes [B, K] after mixing."""

    def __init__(self, model: VisionTransformer, options: FineTuneOptions) -> None:
        super().__init__()
        self.model, self.options = model, options
        self.soft_loss = SoftTargetCrossEntropy()

    def forward(self, pixels: Tensor, targets: Tensor, seeds: Tensor) -> ObjectiveOutput:
        logits = classify(self.model, pixels, seeds)
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
    """timm's mixup and CutMix of a batch; an odd last image is left as it is."""
    if not options.mixup and not options.cutmix:
        return None
    mixup = Mixup(
        options.mixup, options.cutmix, label_smoothing=options.smoothing, num_classes=classes, switch_prob=0.5
    )

    def mix(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        even = len(pixels) // 2 * 2
        mixed, targets = mixup(pixels[:even], labels[:even]) if even else (pixels[:0], _one_hot(labels[:0]))
        return torch.cat([mixed, pixels[even:]]), torch.cat([targets, _one_hot(labels[even:])])

    def _one_hot(labels: Tensor) -> Tensor:
        return mixup_target(labels, classes, lam=1.0, smoothing=options.smoothing)

    return mix


def train_transform(options: FineTuneOptions, image_size: int) -> Transform:
    return random_crop(
        image_size,
        options.smallest_crop,
        options.flip,
        auto_augment=options.auto_augment or None,
        re_prob=options.erasing,
        re_mode="pixel",
        re_count=1,
    )


def fine_tune(job: EvaluationJob, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    """One process's part; the first one writes the scores."""
    options = job.options
    assert isinstance(options, FineTuneOptions)
    splits, size = job.splits(fraction=options.train_fraction), job.subject.backbone.image_size
    model = build_classifier(
        job.subject.backbone.model_copy(update={"drop_path_rate": options.drop_path_rate}),
        splits.classes,
        weights=None if job.subject.pretrained is None else job.subject.network(seed=options.seed).state_dict(),
        seed=options.seed,
    )
    feed = job.feed(
        splits,
        train=train_transform(options, size),
        val=centre_crop(size, options.crop_pct),
        mix=mixing(options, splits.classes),
    )
    learner = FineTuning(model, options)
    speed, spent = job.train(learner, feed, options.training, processes, reporter), Parts()
    if processes.is_first:
        learner.eval()
        compute = Halving[Batch, Tensor](lambda batch: classify(model, batch.inputs[0], batch.inputs[2]).cpu())
        with torch.no_grad(), spent.timed("judging", len(splits.val)):
            batches = batches_of(feed, splits.val, processes, size=options.training.batch_size)
            parts = [(found, piece.inputs[1].cpu()) for batch in batches for piece, found in compute(batch)]
        logits, labels = (torch.cat(found) for found in zip(*parts, strict=True))
        write_top_scores(job.folder, logits, labels, "fine-tuned, mean of the patches, one centre crop")
    processes.wait_for_all()
    return spent.notes(speed)
