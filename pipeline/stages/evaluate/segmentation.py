"""Semantic segmentation (Tables 4 and 10): the whole network with UperNet on top learns a class for every pixel.

BEiT v2's recipe (arXiv:2208.06366) on ADE20K: 160,000 steps of 16 squares of 512 pixels, layer decay, linear decay of
the learning rate. Judged are whole images, one scale, by windows that overlap: intersection over union from all pixels
of the validation split. Stochastic depth, dropout, cuts and colours come from the images' seeds, so a resumed run goes
on as it would have.

BatchNorm is over the images that are computed at once: those of all GPUs, or of one process on CPUs. Pieces of
`settings.micro_batch_size` are normalised each by itself, so here that setting changes the result a little.
"""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.heads.segmenter import SegmentationLoss, UperNetSegmenter
from models.heads.sliding_window import labels_at_size, sliding_logits
from models.vit.backbones import build_backbone
from pipeline.data.normalisation import Normalisation
from pipeline.data.segmentation_feed import SegmentationFeed
from pipeline.data.segmentation_images import require_clear_zero
from pipeline.engine.batches import Batch, on_device
from pipeline.engine.errors import PipelineError
from pipeline.engine.parts import Parts
from pipeline.engine.processes import Processes
from pipeline.stages.evaluate.evaluation_options import SegmentationOptions
from pipeline.stages.evaluate.protocol import EvaluationJob, Metric, Protocol, judged_together
from pipeline.stages.evaluate.scores import score_of_sums, write_scores
from pipeline.stages.evaluate.segmentation_metrics import class_counts, confusion_matrix, mean_iou, pixel_accuracy
from pipeline.stages.evaluate.segmented_images import identified_files, segmentation_splits
from pipeline.stages.evaluate.subject import Subject
from pipeline.training.loop import Reporter

logger = logging.getLogger("mapet.stages")


class Segmentation(nn.Module):
    """`(pixels uint8 [B, 3, side, side], labels uint8 [B, side, side], seeds [B], sizes [B, 2])` of
    `SegmentationFeed`."""

    def __init__(self, network: UperNetSegmenter, *, layer_decay: float) -> None:
        super().__init__()
        self.network, self.layer_decay, self.normalise = network, layer_decay, Normalisation()

    def forward(self, pixels: Tensor, labels: Tensor, seeds: Tensor, sizes: Tensor) -> SegmentationLoss:
        images = without_padding(self.normalise(pixels), sizes)
        return self.network.loss(self.network(images, seeds), labels)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return self.network.parameter_groups(weight_decay, layer_decay=self.layer_decay)


def without_padding(images: Tensor, sizes: Tensor) -> Tensor:
    """Return normalised images [B, 3, side, side] with 0, the mean colour, beyond their heights and widths [B, 2]."""
    positions = torch.arange(images.shape[-1], device=images.device)
    rows, columns = (positions < length[:, None] for length in sizes.T)  # [B, side]
    return images.where(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def segmentation(job: EvaluationJob, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    """Do one process's part; return notes on how it went. The first process writes the scores, and of each class how
    many pixels of each image were right, labelled and predicted.

    Raises:
        PipelineError: the images are not there, cannot be read or are not annotated as the options say, or a process
            would have a single image to normalise.
        ModelError: the backbone does not fit.
    """
    options = job.options
    assert isinstance(options, SegmentationOptions)
    require_company(options.training.batch_size, job.settings.micro_batch_size, processes)
    train, val = segmentation_splits(options)
    if not options.label_zero:
        require_clear_zero((val, train))
    network = build_segmenter(job.subject, options)
    network.backbone.set_grad_checkpointing(job.settings.gradient_checkpointing)
    files = identified_files(options, job.settings.layout)
    feed = SegmentationFeed(
        train,
        val,
        options.transforms,
        read=files.unchanged(job.settings.layout),
        crop=options.network.image_size,
        seed=options.seed,
        settings=job.settings.of_one_process(),
    )
    learner = Segmentation(network, layer_decay=options.layer_decay)
    speed, parts = job.train(learner, feed, options.training, processes, reporter), Parts()
    with parts.timed("judging", len(val)):
        counts = judge_whole_images(network, feed, options, processes)
    processes.by_first(lambda: _write_scores(job.folder, counts, options))
    return parts.notes(speed)


def build_segmenter(subject: Subject, options: SegmentationOptions) -> UperNetSegmenter:
    """Build UperNet on the subject's backbone, on the CPU."""
    shape = subject.backbone.model_copy(update={"drop_path_rate": options.drop_path_rate})
    backbone = build_backbone(shape, seed=options.seed)
    backbone.load_state_dict(subject.network(seed=options.seed).state_dict())
    return UperNetSegmenter(backbone, options.classes, options.network, seed=options.seed)


def judge_whole_images(
    network: UperNetSegmenter, feed: SegmentationFeed, options: SegmentationOptions, processes: Processes
) -> np.ndarray:
    """Return `class_counts` of every validation image at its own size: int64 [images, 3, K], the same in all
    processes."""
    network.eval()
    normalise = Normalisation().to(processes.device)

    def judge(batch: Batch) -> Tensor:
        pixels, labels = batch.inputs
        logits = sliding_logits(
            network.predict,
            normalise(pixels),
            window=options.network.image_size,
            stride=options.stride,
            classes=options.classes,
        )
        predicted = labels_at_size(logits, (labels.shape[1], labels.shape[2]))
        return class_counts(confusion_matrix(predicted, labels[0], classes=options.classes))[None]

    rows = feed.val_rows
    batches = on_device(feed.whole_images(processes.share(rows)), processes.device)
    return judged_together(network, batches, judge, processes, total=len(rows)).numpy()


def _write_scores(folder: Path, counts: np.ndarray, options: SegmentationOptions) -> None:
    reading = f"UperNet, one scale, windows of {options.network.image_size} pixels every {options.stride}"
    measures = {"miou": mean_iou, "pixel_accuracy": pixel_accuracy}
    scores = [score_of_sums(name, counts, measure, reading) for name, measure in measures.items()]
    of_class = counts.astype(np.uint32).transpose(1, 2, 0)  # [3, K, images]
    write_scores(folder, scores, dict(zip(("right", "labelled", "predicted"), of_class, strict=True)))


def require_company(batch_size: int, micro_batch_size: int, processes: Processes) -> None:
    """Require two images at once, as BatchNorm needs in training. Raises PipelineError where a process would have
    one."""
    if processes.shares_norms:
        return
    for share in {batch_size // processes.size, math.ceil(batch_size / processes.size)}:
        pieces = math.ceil(share / (micro_batch_size or share or 1))
        if share < 2 * pieces or not share:
            raise PipelineError(
                f"a step of {batch_size} images on {processes.size} processes, computed "
                f"{micro_batch_size or share} at a time, leaves an image by itself, which BatchNorm cannot normalise; "
                "raise segmentation.training.batch_size, or set settings.micro_batch_size to 0 or more than 2"
            )


SEGMENTATION = Protocol("Segmentation", (Metric("miou", "mIoU", "Segmentation, mIoU"),), segmentation)
