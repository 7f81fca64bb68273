"""From an image with labels to what a segmentation network sees: Table 10's recipe, which is BEiT v2's.

Training: scale at random, cut a square at random, mirror, distort the colours, normalise, pad. Evaluation: scale to a
fixed size and normalise; labels keep their size, the prediction is brought to it. Everything random comes from the
`numpy.random.Generator` that is passed. Pixels stay 8 bits here: they are normalised on the device, where what was
padded becomes 0, which 8 bits cannot say.

As mmsegmentation does it, with these differences: labels are scaled by the nearest pixel centre, where OpenCV's nearest
neighbour is off by up to half a pixel, colours are rounded where it cuts decimals off, and saturation and hue
change in one step. Images are scaled as there, bilinear without antialiasing.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.data.segmentation_images import IGNORED, SegmentedImage
from pipeline.data.segmentation_options import SegmentationTransformOptions

_CUTS_TRIED = 11  # a first one and 10 more; the last is taken as it is
_HUE_STEPS = 256  # of PIL's 8 bits for the full circle


@dataclass(frozen=True)
class SegmentationSample:
    """`pixels` uint8 [3, side, side] and `labels` uint8 [side, side], 255 = no class; of the image are the upper left
    `height` x `width`, the rest is padding."""

    pixels: Tensor
    labels: Tensor
    height: int
    width: int


def training_sample(
    image: SegmentedImage, options: SegmentationTransformOptions, *, crop: int, rng: np.random.Generator
) -> SegmentationSample:
    """Return a random square of `crop` pixels a side; what lies outside the image has label 255."""
    scale = rng.uniform(options.smallest_scale, options.largest_scale)
    pixels, labels = scaled(image, short_side=options.short_side * scale, long_side=options.long_side * scale)
    rows, columns = choose_cut(labels, crop, options.largest_class_share, rng)
    pixels, labels = pixels[rows, columns], labels[rows, columns]
    if rng.random() < options.flip:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    return _filled(distort_colours(pixels, options, rng), labels, crop)


def central_sample(image: SegmentedImage, options: SegmentationTransformOptions, *, crop: int) -> SegmentationSample:
    """Return the square in the middle of the scaled image, for the loss on images that are not trained on."""
    pixels, labels = scaled(image, short_side=options.short_side, long_side=options.long_side)
    top, left = (max(length - crop, 0) // 2 for length in labels.shape)
    cut = slice(top, top + crop), slice(left, left + crop)
    return _filled(pixels[cut], labels[cut], crop)


def evaluation_pixels(image: SegmentedImage, options: SegmentationTransformOptions) -> Tensor:
    """Return the whole image, scaled: uint8 [3, H, W]. The prediction belongs to `image.labels`' size."""
    height, width = scaled_size(image.labels.shape, short_side=options.short_side, long_side=options.long_side)
    return _channels_first(_resized(image.pixels, height, width, "bilinear"))


def scaled_size(size: tuple[int, ...], *, short_side: float, long_side: float) -> tuple[int, int]:
    """Return the height and width, aspect kept: the shorter side is `short_side` or the longer one `long_side`,
    whichever makes the image smaller."""
    height, width = size
    # mmsegmentation takes whole pixels of both limits first.
    factor = min(int(long_side) / max(height, width), int(short_side) / min(height, width))
    return max(math.floor(height * factor + 0.5), 1), max(math.floor(width * factor + 0.5), 1)


def scaled(
    image: SegmentedImage, *, short_side: float, long_side: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return pixels and labels at `scaled_size`."""
    size = scaled_size(image.labels.shape, short_side=short_side, long_side=long_side)
    labels = _resized(image.labels[:, :, None], *size, "nearest-exact")[:, :, 0]
    return _resized(image.pixels, *size, "bilinear"), labels


def choose_cut(
    labels: NDArray[np.uint8], crop: int, largest_class_share: float, rng: np.random.Generator
) -> tuple[slice, slice]:
    """Return rows and columns of a random square, or of all there is along a side that is shorter."""
    height, width = labels.shape
    for _ in range(_CUTS_TRIED):
        top = int(rng.integers(max(height - crop, 0) + 1))
        left = int(rng.integers(max(width - crop, 0) + 1))
        cut = slice(top, top + crop), slice(left, left + crop)
        counts = np.bincount(labels[cut].ravel(), minlength=IGNORED + 1)[:IGNORED]
        if 0 < counts.max() < largest_class_share * counts.sum():
            break
    return cut


def distort_colours(
    pixels: NDArray[np.uint8], options: SegmentationTransformOptions, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Change brightness, contrast, saturation and hue at random, each or not, contrast before or after the last two; no
    pixel moves.

    After Liu et al., "SSD", arXiv:1512.02325. The generator is drawn from equally often whatever is changed.
    """
    chosen = rng.random(4) < options.distortion
    reach = chosen * rng.uniform(-1, 1, 4) * (options.brightness, options.contrast, options.saturation, options.hue)
    added, contrast, saturation, hue = (reach + np.array([0, 1, 1, 0])).tolist()
    contrast_first = rng.random() < 0.5
    pixels = _blend(pixels, 1.0, added)
    if contrast_first:
        pixels = _blend(pixels, contrast, 0.0)
    pixels = _recolour(pixels, saturation, hue)
    return pixels if contrast_first else _blend(pixels, contrast, 0.0)


def _filled(pixels: NDArray[np.uint8], labels: NDArray[np.uint8], side: int) -> SegmentationSample:
    """Fill an image up to a square: at the right and below, with zeros that have no class."""
    height, width = labels.shape
    missing = (0, side - width, 0, side - height)
    flat = torch.from_numpy(np.ascontiguousarray(labels))
    return SegmentationSample(
        F.pad(_channels_first(pixels), missing), F.pad(flat, missing, value=IGNORED), height, width
    )


def _channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _resized(pixels: NDArray[np.uint8], height: int, width: int, mode: str) -> NDArray[np.uint8]:
    if pixels.shape[:2] == (height, width):
        return pixels
    channels_first = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return F.interpolate(channels_first, size=(height, width), mode=mode)[0].permute(1, 2, 0).numpy()


def _blend(pixels: NDArray[np.uint8], factor: float, added: float) -> NDArray[np.uint8]:
    if factor == 1.0 and added == 0.0:
        return pixels
    # 256 values, looked up: a tenth of the time of computing on every pixel
    return np.clip(np.rint(np.arange(256) * factor + added), 0, 255).astype(np.uint8)[pixels]


def _recolour(pixels: NDArray[np.uint8], saturation: float, hue: float) -> NDArray[np.uint8]:
    """Multiply the saturation, turn the hue by a share of the circle."""
    if saturation == 1.0 and hue == 0.0:
        return pixels
    colours = np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("HSV"))
    turned = colours[:, :, 0].astype(np.int16) + round(hue * _HUE_STEPS)
    colours[:, :, 0] = turned % _HUE_STEPS
    colours[:, :, 1] = _blend(colours[:, :, 1], saturation, 0.0)
    return np.array(Image.fromarray(colours, mode="HSV").convert("RGB"))
