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
_COPY = 2**40  # a copy of an image draws like an image of another row, beyond those of any data set


class RowFeed(ABC):
    """All randomness of an image comes from its seed, which comes from (run seed, epoch, row), and which copy it is.

    Attributes:
        train_rows, val_rows: of the data set.
        repeats: how often a step takes each of its images.
    """

    def __init__(
        self, *, train_rows: np.ndarray, val_rows: np.ndarray, seed: int, settings: Settings, repeats: int = 1
    ) -> None:
        self.train_rows, self.val_rows, self.repeats = train_rows, val_rows, repeats
        self._seed, self._settings = seed, settings

    def training(self, shares: Iterable[Share]) -> Iterator[Batch]:
        """A batch for each share."""
        return load_in_workers(self.load_share, shares, self._settings)

    def validation(self, groups: Iterable[np.ndarray]) -> Iterator[Batch]:
        """A batch for each group of rows, without augmentation."""
        shares = [Share(-1, _VALIDATION_EPOCH, rows) for rows in groups]
        return load_in_workers(self.load_share, shares, self._settings, most=len(shares))

    def load_share(self, share: Share) -> Batch:
        """In a worker process."""
        return Batch(share.rows, self.load_rows(share.rows, self.seeds(share), training=is_training(share)))

    def seeds(self, share: Share) -> Tensor:
        """One for each of its rows: int64 [B]."""
        return corruption_seeds(self._seed, share.epoch, torch.from_numpy(share.rows + share.copies * _COPY))

    @abstractmethod
    def load_rows(self, rows: np.ndarray, seeds: Tensor, *, training: bool) -> tuple[Tensor, ...]:
        """A batch's inputs, images first, in a worker process.

        Args:
            rows, seeds: int64 [B].
        """


def is_training(share: Share) -> bool:
    """Or a group of validation images."""
    return share.epoch != _VALIDATION_EPOCH
