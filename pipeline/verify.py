"""`mapet verify`: is an artifact what was published, can a data set be read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.preprocessing import Preprocessing
from pipeline.config import KClipBuildConfig
from pipeline.data.image_batches import ImageSet
from pipeline.data.sources import open_source
from pipeline.index_images import index_of
from pipeline.progress import progress
from pipeline.settings import Settings
from storage.artifact import RECORD, damage, read_artifact
from storage.errors import ArtifactDamaged, ArtifactMissing
from storage.image_records import bad_images

# Every byte is read and decoded; the size to which the picture is then scaled does not matter.
_SMALL = Preprocessing(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


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


def verify_source(config: KClipBuildConfig, settings: Settings) -> Verdict:
    """Read and decode every image of a configuration's source, as the stages will."""
    source = open_source(config.images)
    scan = source.scan()
    index = index_of(scan, config.images)
    decoding = config.decoding.model_copy(update={"on_bad_image": "mark"})
    problems: list[str] = []
    with progress("verify images", len(index)) as advance:
        for batch in ImageSet(index, source, decoding).batches(list(enumerate(index.units)), _SMALL, settings):
            for bad in bad_images(batch.records).to_pylist():
                problems.append(f"{index.name(bad['row'])}: {bad['reason']}")
            advance(len(batch))
    return Verdict(config.images.path, f"{len(index):,} images", tuple(problems), (scan.in_words(), *scan.notes))
