"""Images and annotations of segmentation as rows of an index, identified and compared as the images of any data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from pipeline.data.image_contents import ImageContents
from pipeline.data.known_checksums import ChecksumSources, KnownChecksums, UnchangedReader
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.folder import FolderReader, FolderSource
from storage.files import sha256_bytes
from storage.image_index import SCAN_SCHEMA, ImageIndex
from storage.layout import Layout

Sizes = Sequence[tuple[str, int]]
"""Path from the root and bytes of every file."""


@dataclass(frozen=True)
class SegmentationFiles:
    """Files below `root`; `identity` stands for them in a fingerprint, `index` has a row for each."""

    root: Path
    identity: str
    index: ImageIndex

    def unchanged(self, layout: Layout) -> "UnchangedFiles":
        """Return what reads them and refuses those that changed. `layout`: of the data root that remembers what they
        were like."""
        checksums = ChecksumSources(layout.checksums(self.identity))
        return UnchangedFiles(self, checksums.read(len(self.index), section="segmentation"))


@dataclass(frozen=True)
class UnchangedFiles:
    """Called with the path of one of the files, gives its bytes."""

    files: SegmentationFiles
    known: KnownChecksums

    def __call__(self, path: Path) -> bytes:
        """Raises PipelineError when the file is not what it was, OSError when it cannot be read."""
        row = self._rows[path.relative_to(self.files.root).as_posix()]
        return UnchangedReader(FolderReader(self.files.root), self.known).read(self.files.index.entry(row))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.files.index.table["container"].to_pylist())}


def list_files(root: Path, sizes: Sizes, identity: str) -> SegmentationFiles:
    """Return the files, identified by their names and sizes."""
    return SegmentationFiles(root, identity, _index(sizes))


def read_files(root: Path, sizes: Sizes, listing: str, remembered: Path) -> SegmentationFiles:
    """Return the files, identified by all their bytes.

    Args:
        listing: stands for names and sizes.
        remembered: where what was read is kept.

    Raises:
        PipelineError: a file changed while it was read.
        OSError: the machine is at fault, and not a file.
    """
    index = _contents(root, sizes, remembered).identified()
    return SegmentationFiles(root, sha256_bytes(f"{listing}{index.contents}".encode()), index)


def unread_files(root: Path, sizes: Sizes, remembered: Path) -> str:
    """Return what `read_files` has to read, as a sentence; "" for nothing."""
    return _contents(root, sizes, remembered).unread_words


def _contents(root: Path, sizes: Sizes, remembered: Path) -> ImageContents:
    return ImageContents(_index(sizes), FolderSource(root, ImageSourceOptions()), root, remembered)


def _index(sizes: Sizes) -> ImageIndex:
    names, counts = [name for name, _ in sizes], [size for _, size in sizes]
    columns = {"name": names, "container": names, "bytes": counts}
    columns |= {name: [""] * len(names) for name in ("split", "key")}
    columns |= {name: [-1] * len(names) for name in ("label", "row_group", "row_in_group")}
    columns |= {"offset": [0] * len(names)}
    table = pa.table({name: columns[name] for name in SCAN_SCHEMA.names}, schema=SCAN_SCHEMA)
    return ImageIndex.build(table, classes=(), source_kind="folder", images_per_shard=4096)
