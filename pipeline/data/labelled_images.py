"""Images with their labels, augmented in worker processes: what evaluation trains and measures on.

timm's transforms draw from global generators; these are seeded for the image and put back, so a resumed run, or one
with other workers, sees the same pixels.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.formats import open_image
from pipeline.data.image_feed import ImageFeed
from pipeline.data.rgb import to_rgb
from pipeline.data.sources.base import ImageReader, ImageSource
from pipeline.errors import PipelineError
from pipeline.settings import Settings
from storage.image_index import ImageEntry, ImageIndex

Transform = Callable[[Image.Image], Tensor]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LabelledSplits:
    """Rows with labels, ascending, and how many classes there are."""

    train: np.ndarray
    val: np.ndarray
    classes: int


def choose_labelled(
    index: ImageIndex, *, train: str, val: str, fraction: float = 1.0, usable: np.ndarray | None = None
) -> LabelledSplits:
    """The labelled rows of two splits.

    Args:
        fraction: of the training images of each class, evenly spread over its rows; 1 takes all.
        usable: bool [images], rows that could be decoded before; all when not given.

    Raises:
        PipelineError: a split has no labelled image.
    """
    good = index.labels >= 0 if usable is None else usable & (index.labels >= 0)
    rows = {name: (found := index.rows_of_split(name))[good[found]] for name in (train, val)}
    for name, found in rows.items():
        if not len(found):
            raise PipelineError(
                f"split {name!r} has no labelled images; evaluation needs class folders, and splits "
                f"{', '.join(index.splits)} are there"
            )
    chosen = _spread(rows[train], index.labels[rows[train]], fraction)
    classes = max(len(index.classes), int(index.labels.max()) + 1)
    return LabelledSplits(chosen, rows[val], classes)


def _spread(rows: np.ndarray, labels: np.ndarray, fraction: float) -> np.ndarray:
    if fraction >= 1:
        return rows
    kept = []
    for label in np.unique(labels):
        own = rows[labels == label]
        count = max(1, round(fraction * len(own)))
        kept.append(own[np.linspace(0, len(own) - 1, count).round().astype(int)])
    return np.sort(np.concatenate(kept))


class LabelledImages(ImageFeed):
    """Batches of `(pixels float32 [B, 3, S, S] normalised, targets, seeds int64 [B])`.

    Targets are labels int64 [B], or with `mix` (in training) whatever it makes of pixels and labels, float32 [B, K].
    """

    def __init__(
        self,
        index: ImageIndex,
        source: ImageSource,
        rows: LabelledSplits,
        *,
        train_transform: Transform,
        val_transform: Transform,
        mix: Mix | None = None,
        seed: int,
        settings: Settings,
    ) -> None:
        super().__init__(index, source, train_rows=rows.train, val_rows=rows.val, seed=seed, settings=settings)
        self._train_transform, self._val_transform, self._mix = train_transform, val_transform, mix

    def load(
        self, entries: Iterable[ImageEntry], reader: ImageReader, rows: np.ndarray, seeds: Tensor, *, training: bool
    ) -> tuple[Tensor, ...]:
        transform = self._train_transform if training else self._val_transform
        images = []
        for entry, seed in zip(entries, seeds.tolist(), strict=True):
            with seeded(seed):
                images.append(transform(open_rgb(reader, entry)))
        pixels, targets = torch.stack(images), torch.from_numpy(self.index.labels[rows].astype(np.int64))
        if training and self._mix is not None:
            with seeded(int(seeds[0])):
                pixels, targets = self._mix(pixels, targets)
        return pixels, targets, seeds


def open_rgb(reader: ImageReader, entry: ImageEntry) -> Image.Image:
    """The decoded image. Raises PipelineError naming it when it cannot be had."""
    try:
        with open_image(BytesIO(reader.read(entry)), entry.key or entry.container) as image:
            return to_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PipelineError(
            f"{entry.name}: cannot be decoded ({' '.join(str(error).split())[:200]}); mend or remove it, and index the "
            "data set again"
        ) from None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's global generators seeded inside, and as before afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
