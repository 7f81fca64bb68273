"""Images are read several times, by different stages on different days: the bytes have to be those of the first time.

What is known of an image's bytes when it is read comes from whoever read them before:

- the image index, where the data set was indexed by its contents (and its size, of files and members of tars);
- the artifacts that a stage is handed: a token store and a feature sample have a record of every image;
- where these know nothing, the data root's own file of what was read first (`storage/checksum_file.py`).

None of it is in a fingerprint. It reaches every reader by standing between it and the source.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import google_crc32c

from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.base import ImageReader, ImageSource, Scan
from pipeline.data.sources.kinds import open_source
from pipeline.engine.errors import PipelineError
from storage.artifact import Artifact
from storage.checksum_file import ChecksumFile
from storage.image_index import ImageEntry
from storage.image_records import recorded_checksums
from storage.layout import Layout


@dataclass(frozen=True)
class ChecksumSources:
    """Where it is written down what the images of an index were like. To be hashed and pickled.

    Attributes:
        remembered: by whoever read them first, with this data root.
        recorded: folders of artifacts whose stages read them.
    """

    remembered: Path
    recorded: tuple[Path, ...] = ()

    @classmethod
    def of(cls, images: Artifact, layout: Layout, made_of_them: Iterable[Artifact | None] = ()) -> Self:
        """Find the checksums of an image index; `made_of_them`: artifacts that a stage is handed beside it."""
        recorded = tuple(artifact.path for artifact in made_of_them if artifact is not None)
        return cls(layout.checksums(images.digest), recorded)

    def read(self, images: int, *, section: str = "images") -> "KnownChecksums":
        """Read the checksums. `images`: how many the index has; `section`: of the options that tell of them."""
        return KnownChecksums(self, images, section)


class KnownChecksums:
    """What the images of an index were like when they were read before."""

    def __init__(self, checksums: ChecksumSources, images: int, section: str) -> None:
        self._section = section
        self._remembered = ChecksumFile(checksums.remembered)
        self._recorded = [(folder, *recorded_checksums(folder, images)) for folder in checksums.recorded]

    def require_same(self, entry: ImageEntry, data: bytes) -> None:
        """Compare an image that was read; one that nobody has read before is remembered.

        Raises:
            PipelineError: it is another one now.
        """
        checksum = int(google_crc32c.value(data))
        if found := self.difference(entry, len(data), checksum):
            raise PipelineError(found)
        if self._expected(entry) is None:
            self._remembered.put(entry.row, checksum)

    def difference(self, entry: ImageEntry, size: int, checksum: int) -> str:
        """Return how an image differs from what it was, and what to do; "" where it does not, or nobody knows."""
        if 0 <= entry.bytes != size:
            return (
                f"{entry.name}: had {entry.bytes} bytes when the data set was indexed, has {size} now; the data "
                "set changed: restore the file, or run the build again, which indexes it anew"
            )
        expected = self._expected(entry)
        if expected is None or expected[0] == checksum:
            return ""
        before, when = expected
        if entry.crc32c is not None:
            remedy = "touch it and run the build again, which indexes it anew"
        else:
            remedy = f"run again with {self._section}.identity=content, which indexes the data set anew by its contents"
        return (
            f"{entry.name}: its {size} bytes are not those of {when} (CRC-32C {checksum:08x}, then {before:08x}); "
            f"the data set changed: restore the file, or {remedy}"
        )

    def _expected(self, entry: ImageEntry) -> tuple[int, str] | None:
        """Return the CRC-32C that an image had, and when, in words; None where nobody knows."""
        if entry.crc32c is not None:
            return entry.crc32c, "the time when it was indexed"
        for folder, checksums, read in self._recorded:
            if read[entry.row]:
                return int(checksums[entry.row]), f"the time when {folder} was made"
        remembered = self._remembered.get(entry.row)
        return None if remembered is None else (remembered, "the time when it was first read")


@dataclass(frozen=True)
class UnchangedImages:
    """A source whose readers refuse an image that is not what it was. An `ImageSource`."""

    source: ImageSource
    known: KnownChecksums

    def scan(self) -> Scan:
        return self.source.scan()

    def reader(self) -> "UnchangedReader":
        return UnchangedReader(self.source.reader(), self.known)


class UnchangedReader:
    """Reads images, and refuses one that is not what it was. An `ImageReader`."""

    def __init__(self, reader: ImageReader, known: KnownChecksums) -> None:
        self._reader, self._known = reader, known

    def read(self, entry: ImageEntry) -> bytes:
        """Read as the reader behind it; also raises PipelineError when the image changed."""
        data = self._reader.read(entry)
        self._known.require_same(entry, data)
        return data

    def close(self) -> None:
        self._reader.close()


def open_unchanged(
    source: ImageSourceOptions, images: Artifact, count: int, layout: Layout, *made_of_them: Artifact | None
) -> UnchangedImages:
    """Return the source of an index's images, which compares each image with what is known of it.

    Args:
        images: the index of `count` images.
        made_of_them: artifacts whose stages read them, as far as a stage is handed such.
    """
    return UnchangedImages(open_source(source), ChecksumSources.of(images, layout, made_of_them).read(count))
