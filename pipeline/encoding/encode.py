"""The pass over all images that two stages share: shards of images through a network, resumed where it stopped."""

import errno
import logging
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from pipeline.data.bad_images import BadImages
from pipeline.data.image_batches import ImageBatch
from pipeline.encoding.networks import release_networks
from pipeline.encoding.shard_job import Encoded, Shard, ShardJob
from pipeline.engine.devices import say_device
from pipeline.engine.errors import PipelineError
from pipeline.engine.parts import Parts
from pipeline.engine.processes import device_name
from pipeline.engine.progress import Advance, progress
from pipeline.engine.settings import Settings
from pipeline.engine.shard_mappers import gpus_that_encode, settings_of_worker
from pipeline.engine.stage import Made
from pipeline.engine.stops import raise_if_stopped
from pipeline.engine.tracker import TrackedRun
from storage import image_records
from storage.image_index import ImageIndex
from storage.shards import part_paths

logger = logging.getLogger("mapet.stages")


@dataclass
class EncodingPass:
    """The pass over some rows of an image index, shard by shard, in this process or in others: the result has the same
    bytes."""

    job: ShardJob
    index: ImageIndex
    rows: np.ndarray  # ascending rows to encode
    seconds: float = field(default=0.0, init=False)  # of this run, not of one that was killed
    _encoded: list[Encoded] = field(default_factory=list, init=False)

    def run(self, what: str, made: Made, run: TrackedRun) -> None:
        """Encode every shard that is not done yet.

        Raises:
            PipelineError: more images are bad than `decoding` allows, or whatever encoding a batch raises.
            OSError: other machines encoded shards whose files cannot be seen here yet; trying again helps.
        """
        shards, work = self.job.shards, self.work()
        finished = {shard for shard, _ in work if shards.is_done(shard)}
        pending = [(shard, rows) for shard, rows in work if shard not in finished]
        if finished:
            logger.info("%s: %d of %d shards are done, going on", what, len(finished), len(work))
        tally = BadImages(self.index, self.job.decoding)
        for shard in sorted(finished):
            tally.add(shards.read(image_records.PART, shard))
        done = len(self.rows) - sum(len(rows) for _, rows in pending)
        started = time.monotonic()
        with (
            progress(what, len(self.rows), done=done) as advance,
            # Closed at once when something is wrong, not when the error is forgotten: other processes are at work.
            closing(self._encode(pending, made, advance)) as encoding,
        ):
            for encoded in encoding:
                self._encoded.append(encoded)
                self.seconds = time.monotonic() - started
                run.metrics(self.speed, step=encoded.shard)
                tally.add(shards.read(image_records.PART, encoded.shard))
                raise_if_stopped()
        tally.refuse_none_good()
        self._require_visible(len(work))

    def work(self) -> list[Shard]:
        """Return the shards without the rows that are not asked for, in reading order."""
        wanted = np.zeros(len(self.index), bool)
        wanted[self.rows] = True
        shards = ((shard, rows[wanted[rows]]) for shard, rows in enumerate(self.index.shards))
        return [(shard, rows) for shard, rows in shards if len(rows)]

    def _encode(self, pending: list[Shard], made: Made, advance: Advance) -> Generator[Encoded, None, None]:
        if not pending:
            return
        map_shards = made.shard_mapper
        if map_shards is None:
            say_device(made.settings.device)
            yield from self.job.load(self.index).encode(pending, advance)
            return
        release_networks()  # of which the processes at work need the memory
        job = replace(self.job, settings=settings_of_worker(made.settings))
        for group in map_shards(job, pending):
            for encoded in group:
                advance(encoded.images)
                yield encoded

    def _require_visible(self, shards: int) -> None:
        """Require that all files can be seen: a network file system may list a folder as it was a minute ago, and what
        it leaves out would not be published. Raises OSError, as trying again helps."""
        folder = self.job.shards.folder
        for part in (self.job.part, image_records.PART):
            if len(part_paths(folder, part)) < shards:
                raise OSError(errno.ESTALE, "does not show yet what other machines wrote", str(folder / part))

    @property
    def speed(self) -> dict[str, float]:
        """Images per second of this run, and the share of its time in which devices waited for images."""
        if not self._encoded:
            return {}
        at_work = sum(encoded.seconds for encoded in self._encoded)
        return {
            "images_per_second": round(sum(encoded.images for encoded in self._encoded) / self.seconds, 2),
            "data_wait_share": round(sum(encoded.waited for encoded in self._encoded) / max(at_work, 1e-9), 4),
        }

    def notes(self, settings: Settings) -> dict[str, Any]:
        """Return how fast it went, on what, and what the next one can be priced by."""
        parts = Parts()
        parts.add("encoding", sum(encoded.images for encoded in self._encoded), self.seconds)
        device, together = device_name(torch.device(settings.torch_device())), len(gpus_that_encode(settings)) or 1
        return parts.notes({**self.speed, "device": device, "processes": together})


def refuse_non_finite(finite: torch.Tensor, batch: ImageBatch, index: ImageIndex) -> None:
    """Raise PipelineError where a feature is not finite, naming the first image and patch. `finite`: bool [B, N]."""
    if bool(finite.all()):
        return
    wrong = ~finite[: len(batch)].cpu().numpy() & batch.valid[:, None]
    if wrong.any():
        place, patch = (int(axis[0]) for axis in np.nonzero(wrong))
        raise PipelineError(
            f"{index.name(int(batch.rows[place]))}, patch {patch}: the encoder's feature is not finite, it was "
            "expected to fit 16 bits: set the encoder's precision to fp32 (clip.precision=fp32, "
            "vqkd.precision=fp32), or check its weights"
        )
