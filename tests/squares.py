"""Square stores for tests and benchmarks, written as the stage writes them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.decode import read_and_decode
from pipeline.data.decoding_options import DecodePreset
from pipeline.data.sources.kinds import open_source
from pipeline.training.token_prediction import pretraining_square
from storage import image_records
from storage.image_index import ImageIndex, ImageStatus
from storage.shards import ShardFolder
from storage.square_store import PART, SquareFormat, SquareStore, write_square_store
from tests.stages import TokenizedImages

BAD = 5  # a row that is said to be damaged
Squares = Callable[[int], np.ndarray]  # of a row, uint8 [3, side, side]


def write_squares(
    folder: Path, square: Squares, shards: list[np.ndarray], *, image_size: int, bad: tuple[int, ...] = (), **of: str
) -> SquareStore:
    """Write the squares of the rows of `shards`, in the order in which these have them; `of` says what they are."""
    folder.mkdir(parents=True)
    written = ShardFolder(folder, "")
    for number, rows in enumerate(shards):
        nothing = dict.fromkeys(("bytes", "crc32c", "width", "height"), 0) | {"reason": "", "mode": ""}
        status = {row: ImageStatus.DAMAGED if row in bad else ImageStatus.VALID for row in rows.tolist()}
        records = [{**nothing, "row": row, "status": int(how)} for row, how in status.items()]
        parts = {PART: SquareFormat(image_size), image_records.PART: image_records.SCHEMA}
        with written.write(number, parts) as writers:
            for row in rows.tolist():
                writers[PART].write_batch(square(row)[None])
            writers[image_records.PART].write_batch(pa.RecordBatch.from_pylist(records, image_records.SCHEMA))
    count = sum(map(len, shards))
    write_square_store(written, range(len(shards)), images=count, image_size=image_size, attributes=of)
    return SquareStore.open(folder)


def squares_of(built: TokenizedImages, folder: Path, image_size: int, preset: DecodePreset) -> SquareStore:
    """Write the squares of all images but `BAD`."""
    index, reader = ImageIndex.read(built.images.path), open_source(built.source).reader()
    preprocessing = pretraining_square(image_size)

    def square(row: int) -> np.ndarray:
        pixels = read_and_decode(reader, index.entry(row), preprocessing, preset=preset, max_pixels=1 << 20).pixels
        assert pixels is not None
        return np.zeros_like(pixels) if row == BAD else pixels

    shards = [rows[::-1] for rows in index.shards]
    return write_squares(folder, square, shards, image_size=image_size, bad=(BAD,), image_index=built.images.digest)
