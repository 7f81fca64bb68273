"""What tells one container of images from another of the same names and sizes, as far as a scan can have it cheaply.

Of a Parquet file its footer (sizes, offsets and statistics of every column chunk) and both ends of the images of some
row groups; of a tar its members' headers. Two containers that agree in all of it and differ in the middle of an image
are told apart by `images.identity=content` alone.
"""

import os
import tarfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq

_END = 4096  # bytes: past what encoders write alike in front of every image, and one page of the disk
_LOOKED_AT = 8  # row groups: the more a file has, the surer two footers differ
_TAIL = 8  # of a Parquet file: the footer's length and a magic word


def parquet_contents(path: Path, metadata: pq.FileMetaData) -> str:
    """Return SHA-256 of the footer, byte by byte, and of the first and last bytes of the largest column chunk of some
    row groups: images outweigh labels and names. These lie where names and labels are read anyway.

    Images without statistics (they are left out beyond 4 kB, or switched off) whose row groups have the same length to
    the byte need more than the footer: fixed-size formats make such files.
    """
    digest = sha256()
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        length = int.from_bytes(os.pread(file.fileno(), 4, size - _TAIL), "little")
        digest.update(os.pread(file.fileno(), length, size - _TAIL - length))
        for start, end in _image_chunks(metadata):
            digest.update(os.pread(file.fileno(), min(_END, end - start), start))
            digest.update(os.pread(file.fileno(), min(_END, end - start), max(start, end - _END)))
    return digest.hexdigest()


def _image_chunks(metadata: pq.FileMetaData) -> Iterable[tuple[int, int]]:
    """Yield where in the file the largest column chunk of some row groups starts and ends, the first and the last group
    among them."""
    last = metadata.num_row_groups - 1
    for number in sorted({round(place * last / (_LOOKED_AT - 1)) for place in range(_LOOKED_AT)} if last >= 0 else ()):
        group = metadata.row_group(number)
        chunks = [group.column(column) for column in range(group.num_columns)]
        largest = max(chunks, key=lambda chunk: chunk.total_compressed_size)
        start = largest.data_page_offset
        if largest.has_dictionary_page:
            start = min(start, largest.dictionary_page_offset)
        yield start, start + largest.total_compressed_size


class TarContents:
    """The headers of a tar's members, one after the other."""

    def __init__(self) -> None:
        self._digest = sha256()

    def add(self, member: tarfile.TarInfo) -> None:
        """Add a header. `chksum` is its own, over all of it: owner, mode and time too."""
        header = (member.name, member.size, member.offset_data, member.mtime, member.chksum)
        self._digest.update(repr(header).encode())

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
