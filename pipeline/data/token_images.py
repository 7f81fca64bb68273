"""Images joined to their tokens by row of the image index: what pre-training sees.

Never joined by file order or time: the reference implementation's token files, sorted by modification time, change
places when they are copied.
"""

import logging
import sys
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from models.encoders.preprocessing import Preprocessing
from pipeline.data.decode import read_and_decode
from pipeline.data.decoding_options import DecodePreset
from pipeline.data.image_feed import ImageFeed
from pipeline.data.sources.base import ImageReader, ImageSource
from pipeline.data.token_rows import Splits
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from storage.image_index import ImageEntry, ImageIndex
from storage.square_store import SquareStore

logger = logging.getLogger("mapet.stages")
_NO_LIMIT = sys.maxsize  # of pixels: an image that has tokens was within the limit when they were made


class TokenImages(ImageFeed):
    """Batches of `(pixels uint8 [B, 3, side, side], tokens int32 [B, N], seeds int64 [B])`.

    `tokens` is a memory map that all workers and processes of a node share.
    """

    def __init__(
        self,
        index: ImageIndex,
        source: ImageSource,
        tokens: np.ndarray,
        rows: Splits,
        *,
        preprocessing: Preprocessing,
        decoding: DecodePreset,
        seed: int,
        settings: Settings,
        squares: SquareStore | None = None,
    ) -> None:
        super().__init__(index, source, train_rows=rows.train, val_rows=rows.val, seed=seed, settings=settings)
        self._tokens, self._preprocessing, self._decoding = tokens, preprocessing, decoding
        self._squares = squares

    @property
    def image_bytes(self) -> int:
        return 3 * self._preprocessing.image_size**2 + 4 * self._tokens.shape[1]

    def load(
        self, entries: Iterable[ImageEntry], reader: ImageReader, rows: np.ndarray, seeds: Tensor, *, training: bool
    ) -> tuple[Tensor, ...]:
        side = self._preprocessing.image_size
        pixels = torch.empty((len(rows), 3, side, side), dtype=torch.uint8)
        if self._squares is not None:
            self._squares.read(rows, pixels.numpy())
            return pixels, torch.from_numpy(self._tokens[rows].astype(np.int32)), seeds
        for place, entry in enumerate(entries):
            image = read_and_decode(reader, entry, self._preprocessing, preset=self._decoding, max_pixels=_NO_LIMIT)
            if image.pixels is None:
                raise PipelineError(
                    f"{entry.name}: {image.reason}; it was readable when its tokens were made: mend it, or build the "
                    "tokens again"
                )
            pixels[place].copy_(torch.from_numpy(np.ascontiguousarray(image.pixels)))
        return pixels, torch.from_numpy(self._tokens[rows].astype(np.int32)), seeds
