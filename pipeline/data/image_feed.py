"""Feeds of images that an index lists: from a source, which decodes them, or from squares that are kept."""

from abc import abstractmethod
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from pipeline.data.row_feed import RowFeed
from pipeline.data.sources.base import ImageReader, ImageSource
from pipeline.engine.settings import Settings
from storage.image_index import ImageEntry, ImageIndex
from storage.square_store import SquareStore


class ImageFeed(RowFeed):
    """Batches of `(pixels uint8 [B, 3, side, side], ..., seeds int64 [B])` of an index, whose rows are the feed's.

    Attributes:
        trains_on_squares: whether central squares are trained on; those that are not are central in every feed.
    """

    trains_on_squares = False

    def __init__(
        self,
        index: ImageIndex,
        source: ImageSource,
        *,
        train_rows: np.ndarray,
        val_rows: np.ndarray,
        seed: int,
        settings: Settings,
        repeats: int = 1,
        squares: SquareStore | None = None,
    ) -> None:
        """Take `squares`, the very pixels that central squares of the index decode to: with them these are read, by
        threads, and not decoded."""
        super().__init__(train_rows=train_rows, val_rows=val_rows, seed=seed, settings=settings, repeats=repeats)
        self.index, self._source, self._squares = index, source, squares
        self._reader: ImageReader | None = None  # opened by the process that uses it

    @abstractmethod
    def decode(self, entries: Iterable[ImageEntry], reader: ImageReader, seeds: Tensor, *, training: bool) -> Tensor:
        """Return pixels uint8 [B, 3, side, side].

        Args:
            entries: where the bytes of the images are.
            seeds: int64 [B].
        """

    def targets(self, rows: np.ndarray) -> tuple[Tensor, ...]:
        """Return what stands between pixels and seeds, for rows int64 [B]."""
        return ()

    def is_copied(self, *, training: bool) -> bool:
        return self._squares is not None and (self.trains_on_squares or not training)

    def load_rows(self, rows: np.ndarray, seeds: Tensor, *, training: bool) -> tuple[Tensor, ...]:
        if self._squares is not None and self.is_copied(training=training):
            pixels = self._read(self._squares, rows)
        else:
            self._reader = self._reader or self._source.reader()
            pixels = self.decode(self.index.entries(rows), self._reader, seeds, training=training)
        return pixels, *self.targets(rows), seeds

    def _read(self, squares: SquareStore, rows: np.ndarray) -> Tensor:
        shape = (len(rows), 3, squares.image_size, squares.image_size)
        if self._settings.torch_device().startswith("cuda"):
            pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True)  # from which it is copied there
        else:
            pixels = torch.from_numpy(np.empty(shape, np.uint8))  # in huge pages, which torch's own would not have
        squares.read(rows, pixels.numpy())
        return pixels
