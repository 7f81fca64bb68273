"""Stage `import_tokens`, in place of `tokenize_images`: each image gets the tokens that somebody published of it.

What it makes is a token store as tokenizing makes it, for whoever takes tokens. No network sees an image.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.kmeans.statistics import codebook_statistics
from pipeline.data.image_contents import ImageContents
from pipeline.data.inputs import Images
from pipeline.data.sources.kinds import open_source
from pipeline.engine.errors import PipelineError
from pipeline.engine.stage import Made, Stage, recipe_of
from pipeline.engine.tracker import TrackedRun
from pipeline.stages.records import ImportedTokensRecord
from storage import image_records
from storage.artifact import Built, Recipe
from storage.image_index import ImageIndex, ImageStatus
from storage.published_tokens import PublishedTokens
from storage.shards import PartWriter
from storage.token_store import NO_TOKEN, write_token_store

logger = logging.getLogger("mapet.stages")
Joined = Literal["name", "content"]
_NONE = -1
_UNPUBLISHED = "no tokens of it were published"
_DEFINING = ("tokenizer", "encoder", "decoding")  # of a token store, as a recipe of tokenize_images has them


@dataclass(frozen=True)
class ImportTokens(Stage):
    """Join published tokens to images.

    Attributes:
        folder: the published tokens.
        by: what tells which image is which: its name, whatever its bytes, or the size and checksum of its bytes,
            whatever its name.
    """

    NAME: ClassVar[str] = ImportedTokensRecord.STAGE
    USES_GPU: ClassVar[bool] = False

    folder: Path
    images: Images
    by: Joined = "name"

    def recipe(self, made: Made) -> Recipe:
        """Raises StoreInvalid when the folder is not what was published."""
        published = self._published(made)
        definition = {name: published.about[name] for name in _DEFINING if name in published.about}
        inputs = {"images": made[self.images.index].digest, "published": published.digest}
        return recipe_of(self, {**definition, "joined_by": self.by}, **inputs)

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        """Raises PipelineError when not one image is among those that were published."""
        published, index = self._published(made), ImageIndex.read(made[self.images.index].path)
        rows = published.rows()
        found = self._joined(rows, index, made)
        self._tell(found, rows, index)
        has = found != _NONE
        tokens = np.full((len(index), published.patches), NO_TOKEN, np.uint16)
        stored = rows["tokens"].combine_chunks().flatten().to_numpy().reshape(-1, published.patches)
        tokens[has] = stored[found[has]]
        status = np.where(has, ImageStatus.VALID, ImageStatus.UNREADABLE).astype(np.uint8)
        attributes = {**published.about, "image_index": made[self.images.index].digest, "classes": list(index.classes)}
        every = [(np.arange(len(index)), tokens, status)]
        write_token_store(folder, every, images=len(index), patches=published.patches, attributes=attributes)
        vocabulary = int(published.about["vocabulary"])
        counts = np.bincount(tokens[has].reshape(-1), minlength=vocabulary)
        np.save(folder / "counts.npy", counts)
        _write_records(folder, rows, found, checked=self.by == "content")
        record = ImportedTokensRecord(
            images=len(index),
            bad_images=int((~has).sum()),
            vocabulary=vocabulary,
            encoder=str(published.about.get("published_encoder", "")),
            **asdict(codebook_statistics(counts)),
        )
        return record.built({})

    def _published(self, made: Made) -> PublishedTokens:
        return made.once((self, "published"), lambda: PublishedTokens.read(self.folder))

    def _joined(self, rows: pa.Table, index: ImageIndex, made: Made) -> np.ndarray:
        if self.by == "name":
            return joined_by_name(rows, index)
        options = self.images.source_in(made)
        root = Path(options.path).expanduser().absolute()
        contents = ImageContents(index, open_source(options), root, made.settings.layout.contents(root))
        return joined_by_content(rows, index, contents.read()[1])

    def _tell(self, found: np.ndarray, rows: pa.Table, index: ImageIndex) -> None:
        """Say what does not match. Raises PipelineError when nothing does."""
        missing, unused = np.flatnonzero(found == _NONE), len(rows) - len(np.unique(found[found != _NONE]))
        if len(missing) == len(index):
            raise PipelineError(
                f"{self.folder}: not one of these images is among the {len(rows):,} that were published; published is "
                f"for example {rows['name'][0].as_py() if len(rows) else 'none'!r}, here is {index.name(0)!r}: is it "
                f"the same data set, in folders of the same names? With --by content names do not count"
            )
        matched = len(index) - len(missing)
        logger.info("%d of %d images have published tokens, found by %s", matched, len(index), self.by)
        if len(missing):
            logger.warning(
                "%d images have none and are marked invalid, the first is %s", len(missing), index.name(int(missing[0]))
            )
        if unused:
            logger.warning("%d published images are not here", unused)
        if self.by == "name" and (others := _other_sizes(found, rows, index)):
            logger.warning(
                "%d images have published names and another number of bytes: were they scaled or saved again? Their "
                "tokens are those of the published images; --by content takes equal bytes alone",
                others,
            )


def joined_by_name(rows: pa.Table, index: ImageIndex) -> np.ndarray:
    """Return the published row of each image, int64 [images], by canonical names; -1 for none."""
    places = pc.index_in(index.table["name"], value_set=rows["name"].combine_chunks())
    return pc.fill_null(places, _NONE).to_numpy().astype(np.int64)


def joined_by_content(rows: pa.Table, index: ImageIndex, crc32c: pa.Array) -> np.ndarray:
    """Return the same by size and CRC-32C of the encoded bytes; images of one content that were given different tokens
    have none.

    Args:
        crc32c: of the images, uint32 [images], null where one cannot be read.

    Raises:
        PipelineError: the source tells no sizes before images are read.
    """
    sizes = index.table["bytes"].to_numpy()
    if len(sizes) and sizes.max() < 0:
        raise PipelineError(
            "images of this kind of source have no size of their own to be told by; join them --by name"
        )
    published = _keys(rows["bytes"].to_numpy(), rows["crc32c"].to_numpy())
    keys, first, which = np.unique(published, return_index=True, return_inverse=True)
    tokens = rows["tokens"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
    differ = (tokens != tokens[first[which]]).any(axis=1)
    ambiguous = np.zeros(len(keys), bool)
    ambiguous[which[differ]] = True
    wanted = _keys(sizes, pc.fill_null(crc32c, 0).to_numpy())
    place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    hit = (keys[place] == wanted) & ~ambiguous[place] if len(keys) else np.zeros(len(wanted), bool)
    hit &= pc.is_valid(crc32c).to_numpy(zero_copy_only=False)
    return np.where(hit, first[place] if len(keys) else 0, _NONE).astype(np.int64)


def _keys(sizes: np.ndarray, crc32c: np.ndarray) -> np.ndarray:
    return (sizes.astype(np.uint64) << np.uint64(32)) | crc32c.astype(np.uint64)


def _other_sizes(found: np.ndarray, rows: pa.Table, index: ImageIndex) -> int:
    has, sizes = found != _NONE, index.table["bytes"].to_numpy()
    published = rows["bytes"].to_numpy()[found[has]]
    return int(((sizes[has] >= 0) & (sizes[has] != published)).sum())


def _write_records(folder: Path, rows: pa.Table, found: np.ndarray, *, checked: bool) -> None:
    """Write the record of every image that has no tokens, and of those whose bytes were `checked`: whoever reads them
    later holds them to it."""
    has = np.flatnonzero(found != _NONE) if checked else np.array([], np.int64)
    told: list[Mapping[str, Any]] = rows.select(["bytes", "crc32c", "width", "height"]).take(found[has]).to_pylist()
    good = [{"row": int(row), "status": 0, "reason": "", "mode": "", **one} for row, one in zip(has, told, strict=True)]
    nothing = {"status": int(ImageStatus.UNREADABLE), "reason": _UNPUBLISHED, "bytes": 0, "crc32c": 0}
    size = {"width": 0, "height": 0, "mode": ""}
    bad = [{"row": int(row), **nothing, **size} for row in np.flatnonzero(found == _NONE)]
    (folder / image_records.PART).mkdir(exist_ok=True)
    with PartWriter(folder / image_records.PART / "00000.arrow", image_records.SCHEMA) as writer:
        records = sorted((*good, *bad), key=lambda record: record["row"])
        for start in range(0, len(records), 1 << 16):
            some = records[start : start + (1 << 16)]
            writer.write_batch(pa.RecordBatch.from_pylist(some, image_records.SCHEMA))
