"""Images of an index, decoded in worker processes, in batches for an encoder.

A batch never crosses a shard and always has the same shape: the last one of a shard is filled up, and a bad image
leaves its place black. So an encoder computes the same bits for an image whatever the number of workers, whether the
run was resumed, and which images were bad.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from models.encoders.preprocessing import Preprocessing
from pipeline.data.decode import DecodedImage, SquareOptions, read_and_decode_squares
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.sources.base import ImageReader, ImageSource
from pipeline.engine.batches import load_in_workers
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.shared_memory import loading_ahead
from storage import image_records
from storage.image_index import ImageEntry, ImageIndex, ImageStatus


@dataclass(frozen=True)
class ImageBatch:
    """`pixels` uint8 [B, 3, side, side]; the first `len(rows)` belong to images, of which `valid` [n] could be decoded.

    A piece of a batch unless it `is_last`. `also`: other squares of the same images, which stay on the CPU.
    """

    shard: int
    rows: np.ndarray
    pixels: Tensor
    records: pa.RecordBatch
    is_last: bool = True
    also: "ImageBatch | None" = None

    @classmethod
    def joined(cls, pieces: Sequence["ImageBatch"]) -> "ImageBatch":
        rows = np.concatenate([piece.rows for piece in pieces])
        records = pa.concat_batches([piece.records for piece in pieces])
        also = [piece.also for piece in pieces if piece.also is not None]
        pixels = torch.cat([piece.pixels for piece in pieces])
        return cls(pieces[0].shard, rows, pixels, records, also=cls.joined(also) if also else None)

    @property
    def statuses(self) -> np.ndarray:
        return self.records["status"].to_numpy()

    @property
    def valid(self) -> np.ndarray:
        return self.statuses == ImageStatus.VALID

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def padded_size(self) -> int:
        return len(self.pixels)

    def split(self, padded_size: int) -> Iterator["ImageBatch"]:
        """Yield pieces of exactly so many places, the last one filled up; places without an image make no piece of
        their own."""
        for first in range(0, len(self), padded_size):
            pixels = self.pixels[first : first + padded_size]
            filled = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, padded_size - len(pixels)))
            yield ImageBatch(
                self.shard, self.rows[first : first + padded_size], filled, self.records.slice(first, padded_size)
            )

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.pixels,)

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> "ImageBatch":
        return replace(self, pixels=tensors[0])

    def pin_memory(self) -> "ImageBatch":
        return replace(self, pixels=self.pixels.pin_memory())


@dataclass(frozen=True)
class ImageSet:
    """The images of an index, and how to get and decode their bytes. `also`: a square that is wanted beside the one
    that a network sees."""

    index: ImageIndex
    source: ImageSource
    decoding: DecodingOptions
    also: SquareOptions | None = None

    def batches(
        self, shards: Sequence[tuple[int, np.ndarray]], preprocessing: Preprocessing, settings: Settings
    ) -> Iterator[ImageBatch]:
        """Return the batches of `shards` (number and rows of each), in order, in pieces (`batches.put_together`)."""
        size = settings.encoder_batch()
        wanted = [SquareOptions.of(preprocessing, self.decoding.preset, self.decoding.max_pixels)]
        wanted += [self.also] if self.also else []
        ahead = loading_ahead(sum(3 * one.image_size**2 for one in wanted), settings)
        pieces = [
            _Piece(shard, rows[batch : batch + size], first, min(first + ahead.images, size))
            for shard, rows in shards
            for batch in range(0, len(rows), size)
            for first in range(0, size, ahead.images)
        ]
        loader = _Loader(self, wanted, pieces, size)
        return load_in_workers(loader.load, range(len(pieces)), settings, ahead, most=len(pieces))


class _Piece(NamedTuple):
    """Places of a batch, of which the first ones belong to the rows."""

    shard: int
    rows: np.ndarray
    first: int
    end: int


class _Loader:
    """What workers load: number of a piece -> the piece."""

    def __init__(
        self, images: ImageSet, wanted: Sequence[SquareOptions], pieces: Sequence[_Piece], batch_size: int
    ) -> None:
        self._images, self._wanted, self._pieces, self._size = images, wanted, pieces, batch_size
        self._reader: ImageReader | None = None  # opened by the process that uses it

    def load(self, number: int) -> ImageBatch:
        self._reader = self._reader or self._images.source.reader()
        shard, rows, first, end = self._pieces[number]
        rows, is_last = rows[first:end], end == self._size
        sides = [one.image_size for one in self._wanted]
        places = [torch.zeros((end - first, 3, side, side), dtype=torch.uint8) for side in sides]
        records: list[list[dict[str, object]]] = [[] for _ in self._wanted]
        for place, entry in enumerate(self._images.index.entries(rows)):
            for pixels, found, image in zip(places, records, self._decode(entry, self._reader), strict=True):
                if image.pixels is not None:
                    pixels[place].copy_(torch.from_numpy(np.ascontiguousarray(image.pixels)))
                found.append(_record(entry.row, image))
        tables = [pa.RecordBatch.from_pylist(found, image_records.SCHEMA) for found in records]
        batch, *also = (ImageBatch(shard, rows, *one, is_last) for one in zip(places, tables, strict=True))
        return replace(batch, also=also[0]) if also else batch

    def _decode(self, entry: ImageEntry, reader: ImageReader) -> list[DecodedImage]:
        """Raises PipelineError for a bad image where none is allowed."""
        images = read_and_decode_squares(reader, entry, self._wanted)
        if images[0].pixels is None and self._images.decoding.on_bad_image == "fail":
            raise PipelineError(
                f"{entry.name}: {images[0].reason}; mend or remove it, or set decoding.on_bad_image=mark"
            )
        return images


def _record(row: int, image: DecodedImage) -> dict[str, object]:
    return {
        "row": row,
        "status": int(image.status),
        "reason": image.reason,
        "bytes": image.bytes,
        "crc32c": image.crc32c,
        "width": image.width,
        "height": image.height,
        "mode": image.mode,
    }
