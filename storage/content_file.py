"""What was read of the images below a folder, so that only what changed since is read again.

A Parquet file, one row per image: the file that holds it with its size and time of change, its place in there, and
digests of its bytes. Pages carry checksums: a damaged file is none, and what stood in it is read anew.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.files import replace_file

logger = logging.getLogger("mapet.storage")
_PLACE = pa.schema(
    [
        ("container", pa.string()),
        ("container_bytes", pa.int64()),
        ("container_mtime_ns", pa.int64()),
        ("row_group", pa.int32()),
        ("row_in_group", pa.int32()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
    ]
)
_READ = pa.schema([("digest", pa.binary(16)), ("crc32c", pa.uint32())])
SCHEMA = pa.schema([*_PLACE, *_READ])


@dataclass(frozen=True)
class ContentFile:
    """The file at `path`. Several runs may write it: the last one stays, each is whole."""

    path: Path

    def join(self, places: pa.Table) -> pa.Table:
        """Add to `places` (the columns before `digest`) what is known of each, null where nothing is; order stays."""
        numbered = places.append_column("place", pa.array(range(len(places)), pa.int64()))
        joined = numbered.join(self._read(), keys=_PLACE.names, join_type="left outer").sort_by("place")
        return joined.select(SCHEMA.names).cast(SCHEMA).combine_chunks()

    def write(self, known: pa.Table) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(self.path) as temporary:
            pq.write_table(known, temporary, compression="zstd", write_page_checksum=True)

    def _read(self) -> pa.Table:
        try:
            found = pq.read_table(self.path, page_checksum_verification=True)
            if found.schema.equals(SCHEMA) and not _repeats(found):
                return found
            reason = "other columns or rows than expected"
        except FileNotFoundError:
            return SCHEMA.empty_table()
        except (OSError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
        logger.warning("%s: damaged (%s); the images are read again", self.path, reason)
        return SCHEMA.empty_table()


def _repeats(found: pa.Table) -> bool:
    return len(found.group_by(_PLACE.names).aggregate([])) != len(found)
