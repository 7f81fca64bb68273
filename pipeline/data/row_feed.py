"""What feeds a trainer with rows of a data set: batches loaded in worker processes, from rows and an epoch alone."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from models.masking import corruption_seeds
from pipeline.data.batches import Batch, load_in_workers
from pipeline.settings import Settings
from pipeline.training.plan import Share

_VALIDATION_EPOCH = -1  # no epoch of training: the same draws in every validation


class RowFeed(ABC):
    """All randomness of an image comes from its seed, which comes from (run seed, epoch, row).

    Attributes:
        train_rows, val_rows: of the data set.
    """

    def __init__(self, *, train_rows: np.ndarray, val_rows: np.ndarray, seed: int, settings: Settings) -> None:
        self.train_rows, self.val_rows = train_rows, val_rows
        self._seed, self._settings = seed, settings

    def training(self, shares: Iterable[Share]) -> Iterator[Batch]:
        """A batch for each share."""
        return load_in_workers(self._load, ((share.epoch, share.rows) for share in shares), self._settings)

    def validation(self, groups: Iterable[np.ndarray]) -> Iterator[Batch]:
        """A batch for each group of rows, without augmentation."""
        keys = [(_VALIDATION_EPOCH, rows) for rows in groups]
        return load_in_workers(self._load, keys, self._settings, most=len(keys))

    @abstractmethod
    def load_rows(self, rows: np.ndarray, seeds: Tensor, *, training: bool) -> tuple[Tensor, ...]:
        """A batch's inputs, images first, in a worker process.

        Args:
            rows, seeds: int64 [B].
        """

    def _load(self, key: tuple[int, np.ndarray]) -> Batch:
        epoch, rows = key
        seeds = corruption_seeds(self._seed, epoch, torch.from_numpy(rows))
        return Batch(rows, self.load_rows(rows, seeds, training=epoch != _VALIDATION_EPOCH))
