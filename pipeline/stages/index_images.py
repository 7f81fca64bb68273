"""Stage `index_images`: give every image of a data set its row, from names and sizes, or from all of their bytes.

The source is scanned on every run (seconds, no image is opened), and the fingerprint is that of what was found: an
added, removed, renamed or resized image makes a new index, an untouched data set is a cache hit. With
`images.identity=content` so does an image of other bytes; what was read is remembered, and not read again.
"""

import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

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
from storage.files import sha256_bytes
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
        for note in listing.scan.notes:
            logger.warning("%s: %s", listing.options.path, note)
        logger.info("%s: %s", listing.options.path, listing.scan.in_words())
        return index_recipe(self._identified(made), listing.options)

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        listing, index = self._listing(made), self._identified(made)
        index.write(folder)
        record = IndexRecord(
            images=len(index),
            classes=len(index.classes),
            shards=len(index.shards),
            bytes=int(sum(size for size in index.table["bytes"].to_pylist() if size > 0)),
            splits=index.splits,
            source=listing.options.path,
            understood=listing.scan.in_words(),
            notes=tuple(listing.scan.notes),
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
    """What a source holds, before any image is opened."""

    options: ImageSourceOptions
    source: ImageSource
    scan: Scan
    index: ImageIndex

    @classmethod
    def of(cls, options: ImageSourceOptions) -> "_Listing":
        source = open_source(options)
        scan = source.scan()
        return cls(options, source, scan, index_of(scan, options))


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
    sink = io.BytesIO()
    table: pa.Table = index.table.combine_chunks()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    sink.write("\n".join((*index.classes, index.contents)).encode())
    return sha256_bytes(sink.getvalue())
