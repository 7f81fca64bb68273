"""Feeds of images that an index lists and a source holds."""

from abc import abstractmethod
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from pipeline.data.row_feed import RowFeed
from pipeline.data.sources.base import ImageReader, ImageSource
from pipeline.engine.settings import Settings
from storage.image_index import ImageEntry, ImageIndex


class ImageFeed(RowFeed):
    """Images of an index, whose rows are the feed's."""

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
    ) -> None:
        super().__init__(train_rows=train_rows, val_rows=val_rows, seed=seed, settings=settings, repeats=repeats)
        self.index, self._source = index, source
        self._reader: ImageReader | None = None  # opened by the process that uses it

    @abstractmethod
    def load(
        self, entries: Iterable[ImageEntry], reader: ImageReader, rows: np.ndarray, seeds: Tensor, *, training: bool
    ) -> tuple[Tensor, ...]:
        """Return a batch's inputs, images first.

        Args:
            entries: where the bytes of the images are.
            rows: int64 [B].
            seeds: int64 [B].
        """

    def load_rows(self, rows: np.ndarray, seeds: Tensor, *, training: bool) -> tuple[Tensor, ...]:
        self._reader = self._reader or self._source.reader()
        return self.load(self.index.entries(rows), self._reader, rows, seeds, training=training)
