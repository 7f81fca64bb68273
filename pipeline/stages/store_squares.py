"""Stage `store_squares`: the central square of every image, decoded once and kept as pixels.

A pre-training sees the same square of an image in every epoch; with the setting `stored_squares` it copies it from
here instead of decoding the image again. Squares are what decoding gives, bit for bit, before any normalisation, so
nothing that is made from them depends on whether they were kept.

Where tokens are made in the same run, `tokenize_images`, which decodes every image anyway, has left finished shards:
then they are only put together.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from pipeline.data.bad_images import require_allowed
from pipeline.data.inputs import Images
from pipeline.data.known_checksums import ChecksumSources
from pipeline.data.stored_squares import KeptSquares
from pipeline.engine.disk_space import require_space
from pipeline.engine.stage import Made, Source, Stage
from pipeline.engine.tracker import TrackedRun
from pipeline.stages.records import SquaresRecord
from storage import image_records
from storage.artifact import Artifact, Built, Recipe
from storage.files import bytes_below
from storage.image_index import ImageIndex
from storage.shards import ShardFolder
from storage.square_store import PART, write_square_store


@dataclass(frozen=True)
class StoreSquares(Stage):
    """Write the square store of an image index: uint8 [images, 3, side, side], and the status of every image.

    Attributes:
        after: stages that decode the images before, if they are made, and leave their squares; what the images were
            like is in their artifacts.
    """

    NAME: ClassVar[str] = SquaresRecord.STAGE
    VERSION: ClassVar[int] = KeptSquares.VERSION
    USES_GPU: ClassVar[bool] = False

    squares: KeptSquares
    images: Images
    after: tuple[Source, ...] = field(default=(), compare=False)  # whichever they are, the squares are the same

    @property
    def spared_by(self) -> tuple[Source, ...]:
        return self.after

    def recipe(self, made: Made) -> Recipe:
        return self.squares.recipe(made[self.images.index].digest)

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        """Decode what is not there yet.

        Raises:
            PipelineError: the disk is too small, too many images are bad, or the data set changed.
        """
        from pipeline.encoding.encode import EncodingPass
        from pipeline.encoding.shard_job import ShardJob
        from pipeline.encoding.squares import SquareEncoding

        squares, images = self.squares, made[self.images.index]
        settings = made.settings.model_copy(update={"device": "cpu"})  # nothing is computed on the pixels
        index, shards = ImageIndex.read(images.path), ShardFolder(folder, made.recipe(self).fingerprint)
        require_space(folder, squares.bytes(len(index)) - bytes_below(folder), squares.words(len(index)))
        known = ChecksumSources.of(images, settings.layout, [made[one] for one in self.after if one in made])
        source, encoding = self.images.source_in(made), SquareEncoding(squares.square)
        job = ShardJob(images.path, source, squares.decoding, encoding, PART, shards, settings, known)
        decoded = EncodingPass(job, index, np.arange(len(index)))
        decoded.run("store squares", replace(made, settings=settings), run)
        write_square_store(
            shards,
            [shard for shard, _ in decoded.work()],
            images=len(index),
            image_size=squares.image_size,
            attributes={"image_index": images.digest, **made.recipe(self).options},
        )
        records = image_records.read_image_records(folder)
        record = SquaresRecord(images=len(records), bad_images=len(image_records.bad_images(records)))
        return record.built(decoded.notes(settings))

    def accept(self, artifact: Artifact) -> None:
        require_allowed(SquaresRecord.of(artifact).bad_images, self.squares.decoding, artifact.path)
