"""What feeds a trainer with rows of a data set: batches loaded ahead by workers, from rows and an epoch alone."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from models.masking import corruption_seeds
from pipeline.data.share import Share
from pipeline.engine.batches import Batch, load_in_workers
from pipeline.engine.settings import Settings
from pipeline.engine.shared_memory import Ahead, loading_ahead

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

    @property
    @abstractmethod
    def image_bytes(self) -> int:
        """What the inputs of one image take at most, in round numbers."""

    def training(self, shares: Iterable[Share]) -> Iterator[Batch]:
        """Return a batch for each share, in pieces (`batches.put_together`)."""
        ahead = self._ahead(training=True)
        return load_in_workers(self._load_piece, _pieces(shares, ahead), self._settings, ahead)

    def validation(self, groups: Iterable[np.ndarray]) -> Iterator[Batch]:
        """Return a batch for each group of rows, in pieces, without augmentation."""
        ahead = self._ahead(training=False)
        pieces = list(_pieces((Share(-1, _VALIDATION_EPOCH, rows) for rows in groups), ahead))
        return load_in_workers(self._load_piece, pieces, self._settings, ahead, most=len(pieces))

    def is_copied(self, *, training: bool) -> bool:
        """Tell whether `load_rows` copies what is in memory, which threads do, or has to compute."""
        return False

    def _ahead(self, *, training: bool) -> Ahead:
        return loading_ahead(self.image_bytes, self._settings, in_threads=self.is_copied(training=training))

    def _load_piece(self, piece: "_Piece") -> Batch:
        share, is_last = piece
        return replace(self.load_share(share), is_last=is_last)

    def load_share(self, share: Share) -> Batch:
        """Return the batch of a share; called in a worker."""
        return Batch(share.rows, self.load_rows(share.rows, self.seeds(share), training=is_training(share)))

    def seeds(self, share: Share) -> Tensor:
        """Return a seed for each row of a share, int64 [B]."""
        return corruption_seeds(self._seed, share.epoch, torch.from_numpy(share.rows + share.copies * _COPY))

    @abstractmethod
    def load_rows(self, rows: np.ndarray, seeds: Tensor, *, training: bool) -> tuple[Tensor, ...]:
        """Return a batch's inputs, images first, in a worker.

        Args:
            rows, seeds: int64 [B].
        """


def is_training(share: Share) -> bool:
    """Tell training images from a group of validation images."""
    return share.epoch != _VALIDATION_EPOCH


_Piece = tuple[Share, bool]
"""A piece of a share, and whether it is the last one."""


def _pieces(shares: Iterable[Share], ahead: Ahead) -> Iterator[_Piece]:
    for share in shares:
        *others, last = share.pieces(ahead.images)
        yield from ((piece, False) for piece in others)
        yield last, True
