"""Stage `index_images`: give every image of a data set its row, from names and sizes, or from all of their bytes.

The source is scanned on every run (seconds, no image is opened), and the fingerprint is that of what was found: an
added, removed, renamed or resized image makes a new index, an untouched data set is a cache hit. With
`images.identity=content` so does an image of other bytes; what was read is remembered, and not read again.
"""

import io
import logging
from pathlib import Path

import pyarrow as pa

from pipeline.data.image_contents import ImageContents
from pipeline.data.sources import open_source
from pipeline.data.sources.base import ImageSource, ImageSourceOptions, Scan
from pipeline.fingerprint import recipe
from pipeline.tracker import TrackedRun
from pipeline.workspace import StageResult, Workspace
from storage.artifact import Built, Recipe
from storage.files import sha256_bytes
from storage.image_index import ImageIndex

STAGE = "index_images"
VERSION = 2
logger = logging.getLogger("mapet.stages")


def index_images(options: ImageSourceOptions, *, workspace: Workspace) -> StageResult:
    """Write the image index of a source.

    Raises:
        PipelineError: nothing is where the options point, or it is not laid out as its kind should be.
        StoreInvalid: two images have one name.
        OSError: images are read to identify them, and the machine is at fault.
    """
    source = open_source(options)
    scan = source.scan()
    for note in scan.notes:
        logger.warning("%s: %s", options.path, note)
    logger.info("%s: %s", options.path, scan.in_words())
    index = identified(index_of(scan, options), source, options, workspace)

    def build(folder: Path, run: TrackedRun) -> Built:
        index.write(folder)
        summary = {
            "images": len(index),
            "classes": len(index.classes),
            "units": len(index.units),
            "bytes": int(sum(size for size in index.table["bytes"].to_pylist() if size > 0)),
            **{f"{split}_images": count for split, count in index.splits.items()},
        }
        return Built(summary, {"source": options.path, "understood": scan.in_words(), "notes": list(scan.notes)})

    result = workspace.artifact(index_recipe(index, options), build)
    if not result.cached:  # nothing here was made from these images: whatever they are now is what they are
        workspace.settings.layout.checksums(result.artifact.digest).unlink(missing_ok=True)
    return result


def index_recipe(index: ImageIndex, options: ImageSourceOptions) -> Recipe:
    definition = {"kind": options.kind, "images_per_unit": options.images_per_unit}
    return recipe(STAGE, VERSION, definition, listing=_digest(index))


def index_of(scan: Scan, options: ImageSourceOptions) -> ImageIndex:
    """The image index of what a source holds. Raises StoreInvalid when two images have one name."""
    return ImageIndex.build(
        scan.table,
        classes=scan.classes,
        source_kind=options.kind,
        images_per_unit=options.images_per_unit,
        contents=scan.contents,
    )


def identified(index: ImageIndex, source: ImageSource, options: ImageSourceOptions, workspace: Workspace) -> ImageIndex:
    """The index with the identity that the options ask for.

    Raises:
        PipelineError: a file changed while it was read.
        OSError: the machine is at fault, and not an image.
    """
    if options.identity == "listing":
        return index
    root = Path(options.path).expanduser().absolute()
    contents = ImageContents(index, source, root, workspace.settings.layout.contents(root))
    return contents.identified(lambda work: workspace.before(STAGE, f"{work} (images.identity=content)"))


def _digest(index: ImageIndex) -> str:
    """SHA-256 of the index's own rows: the same for the same listing, wherever it lies."""
    sink = io.BytesIO()
    table: pa.Table = index.table.combine_chunks()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    sink.write("\n".join((*index.classes, index.contents)).encode())
    return sha256_bytes(sink.getvalue())
