"""Images joined to their tokens by row of the image index: what pre-training sees.

Never joined by file order or time: the reference implementation's token files, sorted by modification time, change
places when they are copied.
"""

import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.encoders.preprocessing import Preprocessing
from pipeline.data.decode import read_and_decode
from pipeline.data.decoding_options import DecodePreset
from pipeline.data.image_feed import ImageFeed
from pipeline.data.sources.base import ImageReader, ImageSource
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from storage.artifact import Artifact
from storage.errors import StoreMismatch
from storage.image_index import ImageEntry, ImageIndex, ImageStatus
from storage.token_store import TokenStore

logger = logging.getLogger("mapet.stages")
_NO_LIMIT = sys.maxsize  # of pixels: an image that has tokens was within the limit when they were made


def open_tokens(tokens: Artifact, images: Artifact) -> TokenStore:
    """The token store of an image index.

    Raises:
        StoreMismatch: it was made for other images.
    """
    store = TokenStore(tokens.path)
    made_for = str(store.attributes.get("image_index", ""))
    if made_for != images.digest:
        raise StoreMismatch(
            f"{tokens.path}: tokens of image index {made_for[:12]}, the images given have index {images.digest[:12]} "
            f"({images.path}); tokens belong to rows of their own index: run `mapet kclip-build` for these images, or "
            "name the images that the tokens were made from"
        )
    return store


@dataclass(frozen=True)
class Splits:
    """Rows that have tokens, ascending; `invalid` counts those of both splits that have none."""

    train: np.ndarray
    val: np.ndarray
    invalid: int


def choose_rows(index: ImageIndex, store: TokenStore, *, train: str, val: str) -> Splits:
    """The rows of the two splits whose images could be decoded when they were tokenized.

    Raises:
        PipelineError: none is left to train on.
    """
    chosen = {name: index.rows_of_split(name) for name in (train, val)}
    valid = {name: rows[store.status[rows] == ImageStatus.VALID] for name, rows in chosen.items()}
    invalid = sum(len(rows) for rows in chosen.values()) - sum(len(rows) for rows in valid.values())
    if not len(valid[train]):
        splits = ", ".join(f"{name} ({count:,})" for name, count in index.splits.items())
        raise PipelineError(f"pretrain.train_split={train!r} has no images with tokens; the index has {splits}")
    if not len(valid[val]):
        logger.info("split %r has no images: the loss is measured on training images only", val)
    return Splits(valid[train], valid[val], invalid)


class TokenImages(ImageFeed):
    """Batches of `(pixels uint8 [B, 3, S, S], tokens int32 [B, N], seeds int64 [B])`.

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
    ) -> None:
        super().__init__(index, source, train_rows=rows.train, val_rows=rows.val, seed=seed, settings=settings)
        self._tokens, self._preprocessing, self._decoding = tokens, preprocessing, decoding

    @property
    def image_bytes(self) -> int:
        return 3 * self._preprocessing.image_size**2 + 4 * self._tokens.shape[1]

    def load(
        self, entries: Iterable[ImageEntry], reader: ImageReader, rows: np.ndarray, seeds: Tensor, *, training: bool
    ) -> tuple[Tensor, ...]:
        side = self._preprocessing.image_size
        pixels = torch.empty((len(rows), 3, side, side), dtype=torch.uint8)
        for place, entry in enumerate(entries):
            image = read_and_decode(reader, entry, self._preprocessing, preset=self._decoding, max_pixels=_NO_LIMIT)
            if image.pixels is None:
                raise PipelineError(
                    f"{entry.name}: {image.reason}; it was readable when its tokens were made: mend it, or build the "
                    "tokens again"
                )
            pixels[place].copy_(torch.from_numpy(np.ascontiguousarray(image.pixels)))
        return pixels, torch.from_numpy(self._tokens[rows].astype(np.int32)), seeds
