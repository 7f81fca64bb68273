"""A job that encodes shards of one artifact, in whichever process it is called: it can be pickled, as it holds options
and paths, and loads network and index where it runs."""

import logging
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from models.encoders.preprocessing import Preprocessing
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.image_batches import ImageBatch, ImageSet
from pipeline.data.known_checksums import ChecksumSources, UnchangedImages
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.kinds import open_source
from pipeline.encoding.squares import SquareShards
from pipeline.engine.batches import WaitClock, on_device
from pipeline.engine.computing import computing
from pipeline.engine.errors import PipelineError
from pipeline.engine.memory import Halving
from pipeline.engine.settings import Settings
from pipeline.engine.threads import threads_for
from storage import image_records
from storage.image_index import ImageIndex
from storage.shards import PartFormat, ShardFolder

logger = logging.getLogger("mapet.stages")
Shard = tuple[int, np.ndarray]
"""Number and rows, in the order in which they are read."""


class BatchEncoder(Protocol):
    """What a stage makes of a batch of images, with its network loaded."""

    @property
    def network(self) -> nn.Module: ...

    @property
    def preprocessing(self) -> Preprocessing: ...

    @property
    def schema(self) -> pa.Schema | PartFormat:
        """Of what is written."""

    def __call__(self, batch: ImageBatch) -> Any:
        """Encode `batch`, whose pixels are on the device, to a record batch, or what else the format says. Raises
        PipelineError when a feature is not finite."""


class Encoding(Protocol):
    """A stage's options, from which any process gets the same `BatchEncoder`. To be hashed and pickled."""

    def load(self, index: ImageIndex, settings: Settings) -> BatchEncoder:
        """Raises ModelError or PipelineError when the network cannot be had, or is another one here."""


@dataclass(frozen=True)
class Encoded:
    """A shard that is done: how long it took, and how much of that was waiting for images."""

    shard: int
    images: int
    seconds: float
    waited: float


@dataclass(frozen=True)
class ShardJob:
    """What it takes to encode any shards of an artifact. Every path must be good where it is called.

    Attributes:
        beside: where squares of the same images are kept as they are decoded, if they are.
    """

    images: Path  # the image index
    source: ImageSourceOptions
    decoding: DecodingOptions
    encoding: Encoding
    part: str  # of a shard, that the stage itself writes
    shards: ShardFolder
    settings: Settings
    known: ChecksumSources
    beside: SquareShards | None = None

    def __call__(self, pending: Sequence[Shard]) -> list[Encoded]:
        """Encode the shards in another process than the stage's; those that are done, by a worker that was killed
        before it could tell, are only reported."""
        if not self.shards.folder.is_dir():
            raise PipelineError(
                f"{self.shards.folder} is not there on {platform.node()}; workers that encode shards must see the data "
                "root of the stage under the same path: mount it there"
            )
        done = [Encoded(shard, len(rows), 0, 0) for shard, rows in pending if self.shards.is_done(shard)]
        found = {encoded.shard for encoded in done}
        with computing("encoding images", self.settings.torch_device()):
            return done + list(_kept(self).encode([(shard, rows) for shard, rows in pending if shard not in found]))

    def load(self, index: ImageIndex) -> "LoadedJob":
        unchanged = UnchangedImages(open_source(self.source), self.known.read(len(index)))
        images = ImageSet(index, unchanged, self.decoding, also=self.beside.square if self.beside else None)
        return LoadedJob(self, images, self.encoding.load(index, self.settings))


@lru_cache(maxsize=1)  # a worker is given several groups of shards of the same artifact
def _kept(job: ShardJob) -> "LoadedJob":
    if multiprocessing.current_process().daemon and job.settings.decoding_processes:
        logger.warning(
            "this worker is a daemon, which may not start processes: it decodes by itself, slowly "
            "(DASK_DISTRIBUTED__WORKER__DAEMON=False lets a Dask worker start them)"
        )
        job = replace(job, settings=job.settings.model_copy(update={"workers": 0}))
    return job.load(ImageIndex.read(job.images))


@dataclass(frozen=True)
class LoadedJob:
    """A job with its network in memory."""

    job: ShardJob
    images: ImageSet
    encode_batch: BatchEncoder

    def encode(self, pending: Sequence[Shard], advance: Callable[[int], None] = lambda _: None) -> Iterator[Encoded]:
        """Write the shards one after the other, each whole or not at all; `advance(images)` is told of every batch."""
        settings, clock = self.job.settings, WaitClock()
        loading = clock.timed(self.images.batches(pending, self.encode_batch.preprocessing, settings))
        compute = Halving(self.encode_batch)
        schemas = {self.job.part: self.encode_batch.schema, image_records.PART: image_records.SCHEMA}
        began, waited = time.monotonic(), 0.0
        for shard, batches in groupby(on_device(loading, torch.device(settings.torch_device())), lambda one: one.shard):
            images = 0
            beside = self.job.beside
            with (
                self.job.shards.write(shard, schemas) as parts,
                beside.write(shard) if beside else nullcontext(None) as squares,
            ):
                for batch in batches:
                    with threads_for(self.encode_batch.network):
                        for _, encoded in compute(batch):
                            parts[self.job.part].write_batch(encoded)
                    parts[image_records.PART].write_batch(batch.records)
                    if squares and batch.also:
                        squares(batch.also)
                    images += len(batch)
                    advance(len(batch))
            yield Encoded(shard, images, time.monotonic() - began, clock.seconds - waited)
            began, waited = time.monotonic(), clock.seconds
