"""How well predicted label maps fit: intersection over union per class, over a whole data set.

    IoU_k = right_k / (labelled_k + predicted_k - right_k)        mean IoU = mean over classes of IoU_k

computed from one confusion matrix, which is summed over batches and processes before anything is divided: a mean of
images' or batches' IoUs is another number. A class that is neither labelled nor predicted anywhere has no IoU and is
left out of the mean, as mmsegmentation and torchmetrics do; a class that is predicted but never labelled counts as 0.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.segmentation_images import IGNORED
from pipeline.engine.errors import PipelineError


@dataclass(frozen=True)
class SegmentationMetrics:
    """Shares, 0 to 1. `class_iou` float64 [K], NaN for a class that is neither labelled nor predicted."""

    mean_iou: float
    pixel_accuracy: float
    class_iou: Tensor


def confusion_matrix(predicted: Tensor, labels: Tensor, *, classes: int) -> Tensor:
    """Return how many pixels of class i (row) were predicted as class j (column): int64 [K, K]; add up over batches.

    Args:
        predicted: integers in [0, K), any shape.
        labels: of the same shape, in [0, K) or 255: such pixels are left out.

    Raises:
        PipelineError: shapes differ, or a label or prediction is not a class.
    """
    if predicted.shape != labels.shape:
        raise PipelineError(f"predictions of shape {tuple(predicted.shape)} for labels of {tuple(labels.shape)}")
    valid = labels != IGNORED
    truth, guess = labels[valid].long(), predicted[valid].long()
    if len(truth) and not 0 <= min(truth.min(), guess.min()) <= max(truth.max(), guess.max()) < classes:
        raise PipelineError(f"a label or prediction is not in 0 to {classes - 1}; check the number of classes")
    return torch.bincount(truth * classes + guess, minlength=classes**2).view(classes, classes)


def class_counts(confusion: Tensor) -> Tensor:
    """Count, of each class, how many pixels are right, labelled, and predicted: int64 [3, K] of int64 [K, K]."""
    return torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])


def segmentation_metrics(confusion: Tensor) -> SegmentationMetrics:
    """Compute the metrics of a confusion matrix int64 [K, K] of all pixels.

    Raises:
        PipelineError: it counts nothing.
    """
    return metrics_of_counts(class_counts(confusion))


def mean_iou(sums: np.ndarray) -> float:
    """Compute the mean IoU of `class_counts`, added up over images as they are or weighted: [3, K]. Raises
    PipelineError as below."""
    return metrics_of_counts(torch.from_numpy(sums)).mean_iou


def pixel_accuracy(sums: np.ndarray) -> float:
    """Compute the pixel accuracy of the same."""
    return metrics_of_counts(torch.from_numpy(sums)).pixel_accuracy


def metrics_of_counts(counts: Tensor) -> SegmentationMetrics:
    """Compute the metrics of `class_counts`, added up over all images.

    Raises:
        PipelineError: they count nothing.
    """
    right, labelled, predicted = counts.cpu().double()
    if not labelled.any():
        raise PipelineError("no pixel has a class, so there is nothing to measure; check the annotations")
    class_iou = right / (labelled + predicted - right)  # 0 / 0 = NaN where there is nothing to compare
    return SegmentationMetrics(
        mean_iou=class_iou.nanmean().item(),
        pixel_accuracy=(right.sum() / labelled.sum()).item(),
        class_iou=class_iou,
    )
