"""Dense prediction for images of any size by a network of one size: windows that overlap, logits averaged.

    starts along a side of L pixels, windows of w, stride s:  min(i * s, L - w),  i = 0 .. ceil((L - w) / s)

so the last window is flush with the border instead of reaching beyond it, and every pixel is seen at least once; as
mmsegmentation's `slide_inference` (the paper: w = 512, s = 341). There a window shrinks to an image that is smaller;
here such an image is padded with 0, the mean colour after normalisation as in training, at the right and below: a
Vision Transformer has positions for one size only. Logits of the padding are dropped.
"""

import math
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from models.errors import ModelError

_CLASSES_AT_ONCE = 16


def window_starts(length: int, *, window: int, stride: int) -> list[int]:
    """Return where windows begin along a side of `length` pixels, ascending; [0] when one window holds it."""
    beyond = max(length - window, 0)
    return [min(turn * stride, beyond) for turn in range(math.ceil(beyond / stride) + 1)]


def sliding_logits(
    predict: Callable[[Tensor], Tensor],
    images: Float[Tensor, "1 3 H W"],
    *,
    window: int,
    stride: int,
    classes: int,
    at_once: int = 4,
) -> Float[Tensor, "1 {classes} H W"]:
    """Return the mean logits (float32) of all windows over each pixel.

    Args:
        predict: normalised images [b, 3, window, window] to logits [b, classes, window, window].
        images: one image, normalised.
        window, stride: in pixels; the stride is at most the window, otherwise pixels are left out.
        at_once: windows in a batch; a matter of memory and speed.

    Raises:
        ModelError: a stride that leaves pixels out.
    """
    if not 1 <= stride <= window:
        raise ModelError(f"stride {stride} of windows of {window} pixels; choose 1 to {window}, or pixels are left out")
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, max(window - width, 0), 0, max(window - height, 0)))
    tops, lefts = (window_starts(length, window=window, stride=stride) for length in (height, width))
    total = torch.zeros((1, classes, *padded.shape[-2:]), device=images.device)
    seen = torch.zeros((1, 1, *padded.shape[-2:]), device=images.device)
    corners = list(product(tops, lefts))
    for first in range(0, len(corners), at_once):
        areas = [(slice(top, top + window), slice(left, left + window)) for top, left in corners[first:][:at_once]]
        logits = predict(torch.cat([padded[:, :, rows, columns] for rows, columns in areas]))
        for (rows, columns), part in zip(areas, logits, strict=True):
            total[:, :, rows, columns] += part
            seen[:, :, rows, columns] += 1
    return (total / seen)[:, :, :height, :width]


def labels_at_size(logits: Float[Tensor, "1 K h w"], size: tuple[int, int]) -> Int64[Tensor, "{size[0]} {size[1]}"]:
    """Return the likeliest class of each pixel once the logits are enlarged to `size` (height, width), bilinear.

    A few classes at a time: 150 of them for a photograph of 12 megapixels are 7 GB.
    """
    best = torch.full((1, *size), -torch.inf, device=logits.device)
    labels = torch.zeros((1, *size), dtype=torch.int64, device=logits.device)
    for first in range(0, logits.shape[1], _CLASSES_AT_ONCE):
        part = F.interpolate(logits[:, first : first + _CLASSES_AT_ONCE].float(), size=size, mode="bilinear")
        value, label = part.max(dim=1)
        better = value > best
        labels = torch.where(better, first + label, labels)
        best = torch.where(better, value, best)
    return labels[0]
