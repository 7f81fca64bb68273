"""Images with their labels, augmented in worker processes: what evaluation trains and measures on.

All randomness of an image comes from its seed, which comes from (run seed, epoch, row), so a resumed run, or one with
other workers, sees the same pixels. timm's transforms draw from global generators; these are seeded for the image and
put back.
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

from models.masking import corruption_seeds
from pipeline.data.batches import Batch, load_in_workers
from pipeline.data.decode import FORMATS
from pipeline.data.sources.base import ImageReader, ImageSource
from pipeline.errors import PipelineError
from pipeline.settings import Settings
from pipeline.training.plan import Share
from storage.image_index import ImageEntry, ImageIndex

Transform = Callable[[Image.Image], Tensor]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_VALIDATION_EPOCH = -1


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


class LabelledImages:
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
        self._index, self._source, self._mix = index, source, mix
        self._train_transform, self._val_transform = train_transform, val_transform
        self._seed, self._settings = seed, settings
        self.train_rows, self.val_rows = rows.train, rows.val
        self._reader: ImageReader | None = None  # opened by the process that uses it

    def training(self, shares: Iterable[Share]) -> Iterator[Batch]:
        return load_in_workers(self._load, ((share.epoch, share.rows) for share in shares), self._settings)

    def validation(self, groups: Iterable[np.ndarray]) -> Iterator[Batch]:
        keys = [(_VALIDATION_EPOCH, rows) for rows in groups]
        return load_in_workers(self._load, keys, self._settings, most=len(keys))

    def _load(self, key: tuple[int, np.ndarray]) -> Batch:
        epoch, rows = key
        self._reader = self._reader or self._source.reader()
        is_training = epoch != _VALIDATION_EPOCH
        transform = self._train_transform if is_training else self._val_transform
        seeds = corruption_seeds(self._seed, epoch, torch.from_numpy(rows))
        pixels = []
        for entry, seed in zip(self._index.entries(rows), seeds.tolist(), strict=True):
            with seeded(seed):
                pixels.append(transform(open_rgb(self._reader, entry)))
        stacked, targets = torch.stack(pixels), torch.from_numpy(self._index.labels[rows].astype(np.int64))
        if is_training and self._mix is not None:
            with seeded(int(seeds[0])):
                stacked, targets = self._mix(stacked, targets)
        return Batch(rows, (stacked, targets, seeds))


def open_rgb(reader: ImageReader, entry: ImageEntry) -> Image.Image:
    """The decoded image. Raises PipelineError naming it when it cannot be had."""
    try:
        with Image.open(BytesIO(reader.read(entry)), formats=FORMATS) as image:
            return image.convert("RGB")
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
