"""What feeds a trainer with images: batches loaded in worker processes, each from rows and an epoch alone."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from models.masking import corruption_seeds
from pipeline.data.batches import Batch, load_in_workers
from pipeline.data.sources.base import ImageReader, ImageSource
from pipeline.settings import Settings
from pipeline.training.plan import Share
from storage.image_index import ImageEntry, ImageIndex

_VALIDATION_EPOCH = -1  # no epoch of training: the same draws in every validation


class ImageFeed(ABC):
    """Images of an index. All randomness of an image comes from its seed, which comes from (run seed, epoch, row).

    Attributes:
        train_rows, val_rows: of the image index.
    """

    def __init__(
        self,
        index: ImageIndex,
        source: ImageSource,
        *,
        train_rows: np.ndarray,
        val_rows: np.ndarray,
        seed: int,
        settings: Settings,
    ) -> None:
        self.index, self.train_rows, self.val_rows = index, train_rows, val_rows
        self._source, self._seed, self._settings = source, seed, settings
        self._reader: ImageReader | None = None  # opened by the process that uses it

    def training(self, shares: Iterable[Share]) -> Iterator[Batch]:
        """A batch for each share."""
        return load_in_workers(self._load, ((share.epoch, share.rows) for share in shares), self._settings)

    def validation(self, groups: Iterable[np.ndarray]) -> Iterator[Batch]:
        """A batch for each group of rows, without augmentation."""
        keys = [(_VALIDATION_EPOCH, rows) for rows in groups]
        return load_in_workers(self._load, keys, self._settings, most=len(keys))

    @abstractmethod
    def load(
        self, entries: Iterable[ImageEntry], reader: ImageReader, rows: np.ndarray, seeds: Tensor, *, training: bool
    ) -> tuple[Tensor, ...]:
        """A batch's inputs, images first.

        Args:
            entries: where the bytes of the images are.
            rows: int64 [B].
            seeds: int64 [B].
        """

    def _load(self, key: tuple[int, np.ndarray]) -> Batch:
        epoch, rows = key
        self._reader = self._reader or self._source.reader()
        seeds = corruption_seeds(self._seed, epoch, torch.from_numpy(rows))
        training = epoch != _VALIDATION_EPOCH
        return Batch(rows, self.load(self.index.entries(rows), self._reader, rows, seeds, training=training))
