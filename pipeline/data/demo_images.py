"""The demo's data set: real handwritten digits drawn on real photographs, from files that ship with scikit-learn.

Nothing is downloaded and only the composition is synthetic: 1,797 handwritten digits of 8x8 pixels [1] are turned,
scaled, coloured and blended over darkened crops of two photographs,

    pixel = alpha * colour + (1 - alpha) * darkness * photograph.

Plain digits are too easy: raw pixels already tell them apart. On photographs they do not, so a tokenizer has to know
what a digit is before its tokens help. Train and val share neither a digit nor a patch of photograph: the left part of
both photographs belongs to train, the rest to val. The alpha that draws an image is also its exact segmentation mask.

[1] Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

import colorsys
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.demo_options import DemoImagesOptions
from pipeline.engine.errors import PipelineError

CLASS_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASS_FOLDERS = tuple(f"{digit}_{word}" for digit, word in enumerate(CLASS_WORDS))  # sort in the digits' order
SPLITS = ("train", "val")

VAL_SHARE = 500 / 1797
TRAIN_SHARE_OF_PHOTOGRAPH = 0.7  # of the width; what remains for val is still wider than the largest crop
CROP_SIDES = (64, 128)  # in pixels of the photograph
DARKNESS = (0.25, 0.5)
SCALES = (0.95, 1.5)  # 1 = the digit's 8x8 cell covers half of the image's side
MAX_ROTATION = 15.0  # degrees: 6 and 9 stay apart
SATURATION = (0.25, 0.75)  # full saturation would allow pure blue, which no one can read on a dark photograph
INK = (0.35, 0.7)  # interpolated grey values that become transparent and opaque
MARGIN = 2  # empty source pixels around a digit, so that strokes at its border fade out instead of being cut


@dataclass(frozen=True)
class DemoImages:
    """What was written: images per split, and the class folders in label order."""

    counts: Mapping[str, int]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Rendering:
    """One drawn image: `pixels` [side, side, 3] uint8, and the digit's share of each, `alpha` [side, side] float32 in
    0..1."""

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.float32]


@dataclass(frozen=True)
class DemoSources:
    """`digits` [1797, 8, 8] float32 in 0..1, their `labels` [1797], and the `photographs` [H, W, 3] uint8."""

    digits: NDArray[np.float32]
    labels: NDArray[np.int64]
    photographs: tuple[NDArray[np.uint8], ...]

    @classmethod
    def load(cls) -> Self:
        """Read them from the installed scikit-learn."""
        from sklearn.datasets import load_digits, load_sample_images

        digits = load_digits()
        return cls(
            digits=(digits.images / 16).astype(np.float32),
            labels=digits.target.astype(np.int64),
            photographs=tuple(np.asarray(photograph) for photograph in load_sample_images().images),
        )

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The split of each digit: in each class, val digits are spread evenly over the data set's order.

        That order goes writer by writer, so the split is stratified by class and by writer, and any first digits of the
        data set hold both splits in the same proportion.
        """
        seen: Counter[int] = Counter()
        splits = []
        for label in self.labels.tolist():
            before, after = (math.floor(count * VAL_SHARE + 0.5) for count in (seen[label], seen[label] + 1))
            splits.append("val" if after > before else "train")
            seen[label] += 1
        return tuple(splits)


def render_demo_images(folder: Path, options: DemoImagesOptions) -> DemoImages:
    """Write the ImageFolder tree `<split>/<class>/<digit number>_<rendering>.png` into `folder`.

    Every image's randomness comes from (seed, split, digit number, rendering): the bytes are the same on each run, and
    rendering again completes a tree that was interrupted.

    Raises:
        PipelineError: the folder holds images that these options do not draw.
    """
    sources = DemoSources.load()
    names = list(image_names(sources, options))
    _refuse_strangers(folder, names)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Photographs hardly compress: level 1 is 10 % larger than the default and takes half its time.
        Image.fromarray(render_by_name(sources, name, options).pixels).save(path, format="PNG", compress_level=1)
    counts = Counter(PurePosixPath(name).parts[0] for name in names)
    return DemoImages(counts={split: counts[split] for split in SPLITS}, classes=CLASS_FOLDERS)


def image_names(sources: DemoSources, options: DemoImagesOptions) -> Iterator[str]:
    """Yield the posix paths of all images that the options ask for, relative to the folder."""
    for number in range(len(sources.labels))[: options.limit]:
        split, classname = sources.splits[number], CLASS_FOLDERS[sources.labels[number]]
        for rendering in range(options.renderings if split == "train" else 1):
            yield f"{split}/{classname}/{number:04d}_{rendering}.png"


def render_by_name(sources: DemoSources, name: str, options: DemoImagesOptions) -> Rendering:
    """Draw the image that `render_demo_images` wrote under this name, with its mask.

    Raises:
        PipelineError: the name is not one of the demo's.
    """
    try:
        number, rendering = (int(part) for part in PurePosixPath(name).stem.split("_"))
        expected = f"{sources.splits[number]}/{CLASS_FOLDERS[sources.labels[number]]}/{number:04d}_{rendering}.png"
    except (ValueError, IndexError):
        expected = "<split>/<class>/<digit number>_<rendering>.png"
    if name != expected:
        raise PipelineError(f"{name}: not an image of the demo, expected {expected}")
    return render(sources, number, rendering, options)


def render(sources: DemoSources, number: int, rendering: int, options: DemoImagesOptions) -> Rendering:
    """Draw one digit, by its number in the data set."""
    split = sources.splits[number]
    rng = np.random.default_rng([options.seed, SPLITS.index(split), number, rendering])
    background = _background(sources.photographs, split, options.image_size, rng)
    alpha = _posed_alpha(sources.digits[number], options.image_size, rng)
    colour = 255 * np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*SATURATION), 1.0), dtype=np.float32)
    blended = alpha[..., None] * colour + (1 - alpha[..., None]) * background
    return Rendering(pixels=np.rint(blended).astype(np.uint8), alpha=alpha)


def columns_of(split: str, width: int) -> tuple[int, int]:
    """Return the columns [first, last) of a photograph that this split may show."""
    border = round(TRAIN_SHARE_OF_PHOTOGRAPH * width)
    return (0, border) if split == "train" else (border, width)


def _background(
    photographs: tuple[NDArray[np.uint8], ...], split: str, size: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return a darkened crop [size, size, 3] from the split's part of one photograph."""
    photograph = photographs[rng.integers(len(photographs))]
    first, last = columns_of(split, photograph.shape[1])
    side = int(rng.integers(CROP_SIDES[0], CROP_SIDES[1] + 1))
    left = int(rng.integers(first, last - side + 1))
    top = int(rng.integers(0, photograph.shape[0] - side + 1))
    # Cut before scaling: the filter of a resize with a box would look at pixels beyond it, into the other split.
    crop = Image.fromarray(photograph[top : top + side, left : left + side])
    pixels = np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    return pixels * np.float32(rng.uniform(*DARKNESS))


def _posed_alpha(digit: NDArray[np.float32], size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the digit [8, 8] turned, scaled and placed wholly inside a square [size, size]."""
    angle = math.radians(rng.uniform(-MAX_ROTATION, MAX_ROTATION))
    cell = size / 2 * rng.uniform(*SCALES)
    half = cell / 2 * (math.cos(angle) + abs(math.sin(angle)))
    x, y = rng.uniform(half, size - half, 2)
    # Pillow wants the inverse map, from the drawn image to the digit's own pixels.
    step, middle = len(digit) / cell, MARGIN + len(digit) / 2
    cos, sin = step * math.cos(angle), step * math.sin(angle)
    inverse = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    source = Image.fromarray(np.pad(digit, MARGIN))
    grey = np.asarray(source.transform((size, size), Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC))
    edge = np.clip((grey - INK[0]) / (INK[1] - INK[0]), 0, 1).astype(np.float32)
    return edge * edge * (3 - 2 * edge)  # smoothstep: strokes with clean borders out of 8x8 pixels


def _refuse_strangers(folder: Path, names: list[str]) -> None:
    """Refuse images of other options, which would silently join the data set."""
    files = [path for split in SPLITS for path in (folder / split).rglob("*") if path.is_file()]
    strangers = sorted({path.relative_to(folder).as_posix() for path in files}.difference(names))
    if strangers:
        raise PipelineError(
            f"{folder}: holds {len(strangers)} files that these options do not draw, such as {strangers[0]}; "
            "choose an empty folder or delete them"
        )
