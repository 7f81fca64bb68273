"""What became of each image when its bytes were read and decoded: one Arrow part per shard, next to the results."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.image_index import ImageStatus
from storage.shards import part_paths, read_part

PART = "images"
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("status", pa.uint8()),  # ImageStatus
        ("reason", pa.string()),  # "" when valid
        ("bytes", pa.int64()),
        ("crc32c", pa.uint32()),  # of the encoded bytes
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),  # PIL's, before conversion to RGB
    ]
)


def read_image_records(folder: Path) -> pa.Table:
    """Read all records of an artifact, sorted by row."""
    tables = [read_part(path) for path in part_paths(folder, PART)]
    return pa.concat_tables(tables or [SCHEMA.empty_table()]).sort_by("row")


def recorded_checksums(folder: Path, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the CRC-32C of each encoded image, uint32 [images], and which of them were read, bool [images]."""
    checksums, read = np.zeros(images, np.uint32), np.zeros(images, bool)
    for part in (read_part(path) for path in part_paths(folder, PART)):
        rows = part["row"].to_numpy()
        checksums[rows] = part["crc32c"].to_numpy()
        read[rows] = part["status"].to_numpy() != ImageStatus.UNREADABLE
    return checksums, read


def bad_images(records: pa.Table) -> pa.Table:
    return records.filter(pc.not_equal(records["status"], int(ImageStatus.VALID)))
