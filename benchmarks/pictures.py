"""Images for the benchmarks, made on the spot: small ones by the thousand, and photographs of ImageNet's usual size."""

from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPH = (500, 375)  # width, height: the most frequent size in ImageNet
_DISTINCT = 200  # small images; more would say nothing that these do not


def write_small_images(root: Path, *, count: int, side: int = 64) -> None:
    """Write `count` JPEGs `root/train/<class>/<number>.jpg` in classes of 1,000, of blurred noise."""
    rng = np.random.default_rng(0)
    pool = [_jpeg(_noise(rng, side), quality=85) for _ in range(min(count, _DISTINCT))]
    for number in range(count):
        path = root / "train" / f"class{number // 1000:04d}" / f"{number:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pool[number % len(pool)])


def write_photographs(root: Path, *, count: int) -> None:
    """Write `count` JPEGs `root/train/photographs/<number>.jpg`."""
    folder = root / "train" / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(photographs(count)):
        (folder / f"{number:04d}.jpg").write_bytes(data)


def photographs(count: int) -> list[bytes]:
    """Draw random, possibly mirrored crops of scikit-learn's two photographs, 500 x 375, JPEG of quality 90."""
    rng = np.random.default_rng(0)
    return [_jpeg(_crop(rng), quality=90) for _ in range(count)]


def _crop(rng: np.random.Generator) -> Image.Image:
    sample = samples()[rng.integers(len(samples()))]
    width, height = PHOTOGRAPH
    top, left = rng.integers(sample.shape[0] - height + 1), rng.integers(sample.shape[1] - width + 1)
    crop = sample[top : top + height, left : left + width]
    return Image.fromarray(np.ascontiguousarray(crop[:, ::-1] if rng.integers(2) else crop))


@cache
def samples() -> tuple[np.ndarray, ...]:
    from sklearn.datasets import load_sample_images

    return tuple(np.asarray(image) for image in load_sample_images().images)


def _noise(rng: np.random.Generator, side: int) -> Image.Image:
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def _jpeg(image: Image.Image, *, quality: int) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
