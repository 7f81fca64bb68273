"""Stage `index_images`: give every image of a data set its row, from names and sizes alone.

The source is scanned on every run (seconds, no image is opened), and the fingerprint is that of what was found: an
added, removed, renamed or resized image makes a new index, an untouched data set is a cache hit.
"""

import io
import logging
from pathlib import Path

import pyarrow as pa

from pipeline.data.sources import open_source
from pipeline.data.sources.base import ImageSourceOptions, Scan
from pipeline.fingerprint import recipe
from pipeline.tracker import TrackedRun
from pipeline.workspace import StageResult, Workspace
from storage.artifact import Built
from storage.files import sha256_bytes
from storage.image_index import ImageIndex

STAGE = "index_images"
VERSION = 1
logger = logging.getLogger("mapet.stages")


def index_images(options: ImageSourceOptions, *, workspace: Workspace) -> StageResult:
    """Write the image index of a source.

    Raises:
        PipelineError: nothing is where the options point, or it is not laid out as its kind should be.
        StoreInvalid: two images have one name.
    """
    scan = open_source(options).scan()
    for note in scan.notes:
        logger.warning("%s: %s", options.path, note)
    workspace.say(f"{options.path}: {scan.in_words()}")
    index = index_of(scan, options)

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

    definition = {"kind": options.kind, "images_per_unit": options.images_per_unit}
    return workspace.artifact(recipe(STAGE, VERSION, definition, listing=_digest(index)), build)


def index_of(scan: Scan, options: ImageSourceOptions) -> ImageIndex:
    """The image index of what a source holds. Raises StoreInvalid when two images have one name."""
    return ImageIndex.build(
        scan.table, classes=scan.classes, source_kind=options.kind, images_per_unit=options.images_per_unit
    )


def _digest(index: ImageIndex) -> str:
    """SHA-256 of the index's own rows: the same for the same listing, wherever it lies."""
    sink = io.BytesIO()
    table: pa.Table = index.table.combine_chunks()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    sink.write("\n".join(index.classes).encode())
    return sha256_bytes(sink.getvalue())
