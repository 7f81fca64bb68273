"""`mapet verify`: is an artifact what was published, can a data set be read."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.encoders.preprocessing import Preprocessing
from pipeline.configuration.config import KClipBuildConfig
from pipeline.data.image_batches import ImageBatch, ImageSet
from pipeline.data.known_checksums import ChecksumSources, KnownChecksums
from pipeline.data.sources.kinds import open_source
from pipeline.engine.progress import progress
from pipeline.engine.settings import Settings
from pipeline.stages.extract_features import ExtractFeatures
from pipeline.stages.index_images import IndexImages, identified, index_of, index_recipe, unread_words
from pipeline.stages.tokenize_images import TokenizeImages
from storage.artifact import RECORD, damage, find_artifact, list_artifacts, read_artifact
from storage.errors import ArtifactDamaged, ArtifactMissing
from storage.image_index import ImageIndex, ImageStatus
from storage.image_records import bad_images
from storage.layout import Layout

# Every byte is read and decoded; the size to which the picture is then scaled does not matter.
_SMALL = Preprocessing(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

logger = logging.getLogger("mapet.stages")


@dataclass(frozen=True)
class Verdict:
    """What was looked at, how much of it, everything that is wrong with it, and what else there is to know."""

    subject: str
    checked: str
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


def verify_artifact(path: Path) -> Verdict:
    """Compare every byte of an artifact with its checksums. Raises ArtifactMissing when there is no artifact."""
    try:
        artifact = read_artifact(path)
    except ArtifactDamaged as error:
        return Verdict(str(path), "record", (str(error),))
    return Verdict(str(path), f"{len(artifact.files)} files, {artifact.bytes:,} bytes", tuple(damage(artifact)))


def verify_below(folder: Path) -> Iterator[Verdict]:
    """Verify every artifact below `folder`. Raises ArtifactMissing when there is none."""
    paths = sorted(record.parent for record in folder.rglob(RECORD))
    if not paths:
        raise ArtifactMissing(f"{folder}: no artifact here; give the folder of one, or a data root that holds some")
    for path in paths:
        yield verify_artifact(path)


def _known_checksums(index: ImageIndex, config: KClipBuildConfig, layout: Layout) -> KnownChecksums | None:
    """Return what is known of the images of an index; None where it was never made here."""
    try:
        images = find_artifact(layout, index_recipe(index, config.images))
    except (ArtifactMissing, ArtifactDamaged):
        return None
    made = [one for stage in (TokenizeImages.NAME, ExtractFeatures.NAME) for one in list_artifacts(layout, stage)]
    made_of_them = [one for one in made if one.recipe.inputs.get("images") == images.digest]
    return ChecksumSources.of(images, layout, made_of_them).read(len(index))


def _changes(batch: ImageBatch, index: ImageIndex, known: KnownChecksums) -> Iterator[str]:
    read = [record for record in batch.records.to_pylist() if record["status"] != ImageStatus.UNREADABLE]
    entries = index.entries(np.array([record["row"] for record in read], np.int64))
    for entry, record in zip(entries, read, strict=True):
        if difference := known.difference(entry, record["bytes"], record["crc32c"]):
            yield difference


def verify_source(config: KClipBuildConfig, settings: Settings) -> Verdict:
    """Read and decode every image of a configuration's source, as the stages will, and compare it with what they read
    when there are tokens or features of these images in the data root."""
    source = open_source(config.images)
    scan = source.scan()
    listed = index_of(scan, config.images)
    if unread := unread_words(listed, source, config.images, settings.layout):
        logger.info("%s: %s", IndexImages.NAME, unread)
    index = identified(listed, source, config.images, settings.layout)
    known = _known_checksums(index, config, settings.layout)
    decoding = config.decoding.model_copy(update={"on_bad_image": "mark"})
    problems: list[str] = []
    with progress("verify images", len(index)) as advance:
        for batch in ImageSet(index, source, decoding).batches(list(enumerate(index.shards)), _SMALL, settings):
            for bad in bad_images(batch.records).to_pylist():
                problems.append(f"{index.name(bad['row'])}: {bad['reason']}")
            problems += _changes(batch, index, known) if known else []
            advance(len(batch))
    return Verdict(config.images.path, f"{len(index):,} images", tuple(problems), (scan.in_words(), *scan.notes))
