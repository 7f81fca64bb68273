"""The identity of a data set by its contents: every byte of every image is read once, and remembered beside its file's
size and time of change.

The digest is made of the images alone, in the order of the index: how a Parquet file compresses them, or when a tar was
written, does not count.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b, sha256
from itertools import islice
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.decode import is_machine_error, read_encoded
from pipeline.data.sources.base import ImageSource
from pipeline.engine.errors import PipelineError
from pipeline.engine.progress import progress
from pipeline.engine.stops import raise_if_stopped
from storage.content_file import ContentFile
from storage.image_index import ImageIndex

_AT_ONCE = 256  # images that one thread reads, or the images of a container that has more
_READERS = 16  # waiting for a disk or a network; digests and checksums run without Python's lock
_SECONDS_BETWEEN_WRITES = 60.0  # of what a killed run would have to read again
_UNREADABLE = bytes(16)
_Read = tuple[np.ndarray, list[bytes | None], list[int | None]]


class ImageContents:
    """What the images of an index are made of, as far as it is remembered.

    Args:
        root: of the source; containers are below it.
        remembered: where what was read is kept.
    """

    def __init__(self, index: ImageIndex, source: ImageSource, root: Path, remembered: Path) -> None:
        self._index, self._source, self._root = index, source, root
        self._file = ContentFile(remembered)
        self._known = self._file.join(self._places())

    @property
    def unread(self) -> int:
        """Images that have to be read."""
        return int(self._known["digest"].null_count)

    @property
    def unread_words(self) -> str:
        """The same as a sentence; "" if there are none."""
        return f"{self.unread:,} of {len(self._index):,} images have to be read first" if self.unread else ""

    def identified(self) -> ImageIndex:
        """Return the index with the digest and the checksums of its contents. Raises as `read`."""
        return self._index.with_contents(*self.read())

    def read(self) -> tuple[str, pa.Array]:
        """Read what is not known; return the digest of all images, and their CRC-32C, uint32 [images], null where one
        cannot be read.

        Raises:
            PipelineError: a file changed while it was read.
            OSError: the machine is at fault, and not an image.
        """
        digests = np.array(self._known["digest"].to_pylist(), object)
        checksums = np.array(self._known["crc32c"].to_pylist(), object)
        if self.unread:
            rows, written = self._unread_rows(), time.monotonic()
            with progress("read images", len(self._index), done=len(self._index) - len(rows)) as advance:
                for some, found, sums in self._read_all(rows):
                    digests[some], checksums[some] = found, sums
                    advance(len(some))
                    raise_if_stopped()
                    if time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
                        self._remember(digests, checksums)
                        written = time.monotonic()
            self._remember(digests, checksums)
        whole = sha256(b"content\n")
        for digest in digests:
            whole.update(digest or _UNREADABLE)
        return whole.hexdigest(), pa.array(checksums, pa.uint32())

    def _places(self) -> pa.Table:
        table = self._index.table
        containers = table["container"].dictionary_encode().combine_chunks()
        sizes, times = zip(*map(self._stat, containers.dictionary.to_pylist()), strict=True)
        which = containers.indices.to_numpy()
        columns = {name: table[name] for name in ("row_group", "row_in_group", "offset", "bytes")}
        of_container = {"container_bytes": np.array(sizes)[which], "container_mtime_ns": np.array(times)[which]}
        return pa.table({"container": table["container"], **of_container, **columns})

    def _stat(self, container: str) -> tuple[int, int]:
        try:
            status = os.stat(self._root / container)
        except OSError:  # a broken link, whose image cannot be read either
            return -1, -1
        return status.st_size, status.st_mtime_ns

    def _unread_rows(self) -> np.ndarray:
        """Return the unread rows in the order in which they are read fast."""
        unread = self._known["digest"].is_null().to_numpy()
        rows = np.concatenate(self._index.shards)
        return rows[unread[rows]]

    def _read_all(self, rows: np.ndarray) -> Iterator[_Read]:
        with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
            groups = self._groups(rows)
            while some := list(islice(groups, 2 * _READERS)):  # not all at once: ImageNet has thousands
                yield from pool.map(self._read_group, some)

    def _groups(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield whole containers, several together where each has few images."""
        containers = self._known["container"].take(pa.array(rows)).to_numpy()
        first = 0
        for place in range(1, len(rows) + 1):
            ended = place == len(rows) or containers[place] != containers[place - 1]
            if ended and (place == len(rows) or place - first >= _AT_ONCE):
                yield rows[first:place]
                first = place

    def _read_group(self, rows: np.ndarray) -> _Read:
        reader = self._source.reader()
        digests: list[bytes | None] = []
        checksums: list[int | None] = []
        for entry in self._index.entries(rows):
            try:
                data = read_encoded(reader, entry)
            except OSError as error:
                if is_machine_error(error):
                    raise
                digests.append(None)
                checksums.append(None)
                continue
            digests.append(blake2b(data, digest_size=16).digest())
            checksums.append(int(google_crc32c.value(data)))
        reader.close()
        self._require_untouched(rows)
        return rows, digests, checksums

    def _require_untouched(self, rows: np.ndarray) -> None:
        before = self._known.select(["container", "container_bytes", "container_mtime_ns"]).take(pa.array(rows))
        for container, size, mtime_ns in {tuple(place.values()) for place in before.to_pylist()}:
            if self._stat(container) != (size, mtime_ns):
                raise PipelineError(
                    f"{self._root / container}: changed while it was read; run again when nothing writes to the images"
                )

    def _remember(self, digests: np.ndarray, checksums: np.ndarray) -> None:
        names = self._known.schema.names
        known = self._known.drop_columns(["digest", "crc32c"])
        known = known.append_column("digest", pa.array(digests, pa.binary(16)))
        known = known.append_column("crc32c", pa.array(checksums, pa.uint32())).select(names)
        self._file.write(known.filter(pc.is_valid(known["digest"])))
