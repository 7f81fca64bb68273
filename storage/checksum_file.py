"""Checksums of images as they were first read, kept for whoever reads them again: 8 bytes per row of an image index.

Every process that reads images writes into one file, with neither lock nor order: an entry is a CRC-32C and a guard
made of it and its row, so an entry that was never written, cut short by a kill, or damaged is one that nobody knows.
"""

import logging
import os
import struct
from pathlib import Path

import google_crc32c

logger = logging.getLogger("mapet.storage")
_ENTRY = struct.Struct("<II")
_UNWRITTEN = bytes(_ENTRY.size)


class ChecksumFile:
    """The entries at `path`, which is made when something is put into it. Where it cannot be, nothing is remembered.

    Opened by the process that uses it; can be pickled, and shared by forks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._writable = True

    def get(self, row: int) -> int | None:
        """Return the checksum of an image; None where it is not known."""
        try:
            entry = os.pread(self._open(), _ENTRY.size, row * _ENTRY.size)
        except OSError:
            return None
        if len(entry) < _ENTRY.size or entry == _UNWRITTEN:
            return None
        checksum, guard = _ENTRY.unpack(entry)
        return checksum if guard == _guard(row, checksum) else None

    def put(self, row: int, checksum: int) -> None:
        """Remember the checksum of an image, if the file can be written."""
        if not self._writable:
            return
        try:
            os.pwrite(self._open(), _ENTRY.pack(checksum, _guard(row, checksum)), row * _ENTRY.size)
        except OSError as error:
            self._writable = False
            logger.warning(
                "%s: cannot be written (%s); images that change will be noticed by their sizes only",
                *(self.path, error.strerror),
            )

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        return self._descriptor

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_descriptor": None}

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _guard(row: int, checksum: int) -> int:
    return int(google_crc32c.value(struct.pack("<QI", row, checksum)))
