"""Squares of images as they are decoded, shard by shard: in a pass of their own, or beside a network that sees the same
images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import nn

from models.encoders.preprocessing import Preprocessing
from pipeline.data.decode import SquareOptions
from pipeline.data.image_batches import ImageBatch
from pipeline.engine.settings import Settings
from storage import image_records
from storage.image_index import ImageIndex
from storage.shards import ShardFolder
from storage.square_store import PART, SquareFormat


@dataclass(frozen=True)
class SquareShards:
    """Shards of squares. To be pickled."""

    shards: ShardFolder
    square: SquareOptions

    @contextmanager
    def write(self, shard: int) -> Iterator[Callable[[ImageBatch], None]]:
        """Yield what writes the squares of a batch into the shard, which is whole when the block succeeds."""
        formats = {PART: SquareFormat(self.square.image_size), image_records.PART: image_records.SCHEMA}
        with self.shards.write(shard, formats) as parts:

            def write(batch: ImageBatch) -> None:
                parts[PART].write_batch(_squares(batch))
                parts[image_records.PART].write_batch(batch.records)

            yield write


@dataclass(frozen=True)
class SquareEncoding:
    """The `Encoding` of the stage `store_squares`: squares as they are."""

    square: SquareOptions

    def load(self, index: ImageIndex, settings: Settings) -> "_Unchanged":
        return _Unchanged(self.square)


@dataclass(frozen=True)
class _Unchanged:
    square: SquareOptions

    @property
    def network(self) -> nn.Module:
        return nn.Identity()

    @property
    def preprocessing(self) -> Preprocessing:
        nothing, everything = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # squares are kept as 8 bits, before it
        return Preprocessing(self.square.image_size, nothing, everything, self.square.interpolation)

    @property
    def schema(self) -> SquareFormat:
        return SquareFormat(self.square.image_size)

    def __call__(self, batch: ImageBatch) -> np.ndarray:
        return _squares(batch)


def _squares(batch: ImageBatch) -> np.ndarray:
    """Return uint8 [n, 3, side, side], of the places that belong to images."""
    return batch.pixels[: len(batch)].numpy()
