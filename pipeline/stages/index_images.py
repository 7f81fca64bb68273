"""Stage `index_images`: give every image of a data set its row, from names and sizes, or from all of their bytes.

The source is scanned on every run (seconds, no image is opened), and the fingerprint is that of what was found: an
added, removed, renamed or resized image makes a new index, an untouched data set is a cache hit. With
`images.identity=content` so does an image of other bytes; what was read is remembered, and not read again.
"""

import io
import logging
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from pipeline.data.image_contents import ImageContents
from pipeline.data.inputs import ImageLocation
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.base import ImageSource, Scan
from pipeline.data.sources.kinds import open_source
from pipeline.engine.stage import Made, Stage
from pipeline.engine.tracker import TrackedRun
from pipeline.stages.records import IndexRecord
from storage.artifact import Artifact, Built, Recipe
from storage.image_index import ImageIndex
from storage.layout import Layout

logger = logging.getLogger("mapet.stages")


@dataclass(frozen=True)
class IndexImages(Stage):
    """Write the image index of a source."""

    NAME: ClassVar[str] = IndexRecord.STAGE
    VERSION: ClassVar[int] = 2
    USES_GPU: ClassVar[bool] = False

    location: ImageLocation

    def preparation(self, made: Made) -> str:
        listing = self._listing(made)
        return unread_words(listing.index, listing.source, listing.options, made.settings.layout)

    def recipe(self, made: Made) -> Recipe:
        """List the source.

        Raises:
            PipelineError: nothing is where the options point, or it is not laid out as its kind should be; a file
                changed while it was read.
            StoreInvalid: two images have one name.
            OSError: images are read to identify them, and the machine is at fault.
        """
        listing = self._listing(made)
        for note in listing.notes:
            logger.warning("%s: %s", listing.options.path, note)
        logger.info("%s: %s", listing.options.path, listing.understood)
        return index_recipe(self._identified(made), listing.options)

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        listing, index = self._listing(made), self._identified(made)
        index.write(folder)
        record = IndexRecord(
            images=len(index),
            classes=len(index.classes),
            shards=len(index.shards),
            bytes=int(np.maximum(index.table["bytes"].to_numpy(), 0).sum()),
            splits=index.splits,
            source=listing.options.path,
            understood=listing.understood,
            notes=listing.notes,
        )
        return record.built({})

    def tell(self, artifact: Artifact, made: Made, run: TrackedRun) -> None:
        # Nothing here was made from these images: whatever they are now is what they are.
        made.settings.layout.checksums(artifact.digest).unlink(missing_ok=True)

    def _listing(self, made: Made) -> "_Listing":
        return made.once((self, "listing"), lambda: _Listing.of(self.location.options_in(made)))

    def _identified(self, made: Made) -> ImageIndex:
        listing, layout = self._listing(made), made.settings.layout
        return made.once((self, "index"), lambda: identified(listing.index, listing.source, listing.options, layout))


@dataclass(frozen=True)
class _Listing:
    """What a source holds, before any image is opened, in the order of the index; `understood`: the same in words."""

    options: ImageSourceOptions
    source: ImageSource
    index: ImageIndex
    understood: str
    notes: tuple[str, ...]

    @classmethod
    def of(cls, options: ImageSourceOptions) -> Self:
        source = open_source(options)
        scan = source.scan()
        index, understood, notes = index_of(scan, options), scan.in_words(), tuple(scan.notes)
        del scan  # as large as the index
        pa.default_memory_pool().release_unused()
        return cls(options, source, index, understood, notes)


def index_recipe(index: ImageIndex, options: ImageSourceOptions) -> Recipe:
    """Return the recipe of an index that a source with these options gave."""
    definition = {"kind": options.kind, "images_per_shard": options.images_per_shard}
    return Recipe(IndexImages.NAME, IndexImages.VERSION, definition, {"listing": _digest(index)})


def index_of(scan: Scan, options: ImageSourceOptions) -> ImageIndex:
    """Return the image index of what a source holds. Raises StoreInvalid when two images have one name."""
    return ImageIndex.build(
        scan.table,
        classes=scan.classes,
        source_kind=options.kind,
        images_per_shard=options.images_per_shard,
        contents=scan.contents,
    )


def identified(index: ImageIndex, source: ImageSource, options: ImageSourceOptions, layout: Layout) -> ImageIndex:
    """Return the index with the identity that the options ask for.

    Raises:
        PipelineError: a file changed while it was read.
        OSError: the machine is at fault, and not an image.
    """
    if options.identity == "listing":
        return index
    return _contents(index, source, options, layout).identified()


def unread_words(index: ImageIndex, source: ImageSource, options: ImageSourceOptions, layout: Layout) -> str:
    """Return what `identified` has to read; "" for nothing."""
    if options.identity == "listing":
        return ""
    words = _contents(index, source, options, layout).unread_words
    return f"{words} (images.identity=content)" if words else ""


def _contents(index: ImageIndex, source: ImageSource, options: ImageSourceOptions, layout: Layout) -> ImageContents:
    root = Path(options.path).expanduser().absolute()
    return ImageContents(index, source, root, layout.contents(root))


def _digest(index: ImageIndex) -> str:
    """Return SHA-256 of the index's own rows: the same for the same listing, wherever it lies."""
    digest = sha256()
    table: pa.Table = index.table.combine_chunks()
    with pa.ipc.new_stream(pa.PythonFile(_Digesting(digest), "w"), table.schema) as writer:
        writer.write_table(table)
    digest.update("\n".join((*index.classes, index.contents)).encode())
    return digest.hexdigest()


class _Digesting(io.RawIOBase):
    """A file that keeps no more of what is written to it than a digest."""

    def __init__(self, digest: Any) -> None:
        self._digest = digest

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return memoryview(data).nbytes
