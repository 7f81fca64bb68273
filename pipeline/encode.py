"""The pass over all images that two stages share: units of images through a network, resumed where it stopped; and the
networks that it can be: patch encoders, whose features k-means clusters, and tokenizers that need no k-means."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby

import numpy as np
import pyarrow as pa
import torch

from models.clip import ClipOptions, load_clip
from models.patch_encoder import PatchEncoder
from models.preprocessing import Preprocessing
from models.raw_patches import RawPatchEncoder, RawPatchOptions
from models.tokenizers.base import Tokenizer
from models.tokenizers.dalle import DalleOptions, load_dalle
from models.tokenizers.vqkd import VQKDOptions, load_vqkd
from pipeline.data.batches import WaitClock, on_device
from pipeline.data.image_batches import BadImages, ImageBatch, ImageSet
from pipeline.errors import PipelineError
from pipeline.progress import progress
from pipeline.settings import Settings
from pipeline.tracker import TrackedRun
from storage import image_records
from storage.image_index import ImageIndex
from storage.units import PartWriter, UnitFolder

logger = logging.getLogger("mapet.stages")


EncoderOptions = ClipOptions | RawPatchOptions
NetworkOptions = VQKDOptions | DalleOptions


def encoder_for(options: EncoderOptions, settings: Settings) -> PatchEncoder:
    """Load the encoder, or return the one this process has loaded. Raises ModelError when it cannot be had."""
    return _load_encoder(options, settings.torch_device(), settings.compile)


@lru_cache(maxsize=1)  # RN50x64 takes seconds to load and gigabytes to keep: two stages share one
def _load_encoder(options: EncoderOptions, device: str, compiled: bool) -> PatchEncoder:
    if isinstance(options, RawPatchOptions):
        return RawPatchEncoder(options).to(device)
    return load_clip(options, device=device, compile_trunk=compiled)


def tokenizer_for(options: NetworkOptions, settings: Settings) -> Tokenizer:
    """Load a tokenizer that is one network, as `encoder_for` an encoder."""
    return _load_tokenizer(options, settings.torch_device(), settings.compile)


@lru_cache(maxsize=1)
def _load_tokenizer(options: NetworkOptions, device: str, compiled: bool) -> Tokenizer:
    if isinstance(options, DalleOptions):
        return load_dalle(options, device=device)
    return load_vqkd(options, device=device, compile_encoder=compiled)


def network_definition(network: PatchEncoder | Tokenizer) -> dict[str, object]:
    """What of a network defines a result: its weights are an input's digest, these are the choices around them."""
    return {
        "precision": network.precision,
        "image_size": network.preprocessing.image_size,
        "mean": list(network.preprocessing.mean),
        "std": list(network.preprocessing.std),
        "interpolation": network.preprocessing.interpolation,
        "grid": list(network.grid),
    }


@dataclass
class EncodingPass:
    """Some rows of an image index, unit by unit, each unit written whole or not at all."""

    images: ImageSet
    units: UnitFolder
    schema: pa.Schema  # of the part that the stage itself writes
    part: str
    rows: np.ndarray  # ascending rows to encode
    encoded: int = field(default=0, init=False)  # by this process, not by one that was killed
    seconds: float = field(default=0.0, init=False)
    _clock: WaitClock = field(default_factory=WaitClock, init=False)

    def run(
        self, what: str, preprocessing: Preprocessing, settings: Settings, run: TrackedRun
    ) -> Iterator[tuple[ImageBatch, PartWriter]]:
        """Yield every batch that is not done yet, with its pixels on the device, and the writer of its unit's part.

        Raises:
            PipelineError: more images are bad than `decoding` allows.
        """
        work = self.work()
        finished = {unit for unit, _ in work if self.units.is_done(unit)}
        pending = [(unit, rows) for unit, rows in work if unit not in finished]
        if finished:
            logger.info("%s: %d of %d units are done, going on", what, len(finished), len(work))
        tally = BadImages(self.images)
        for unit in sorted(finished):
            tally.add(self.units.read(image_records.PART, unit))
        done = len(self.rows) - sum(len(rows) for _, rows in pending)
        device = torch.device(settings.torch_device())
        batches = on_device(self._clock.timed(self.images.batches(pending, preprocessing, settings)), device)
        started = time.monotonic()
        with progress(what, len(self.rows), done=done) as advance:
            for unit, group in groupby(batches, key=lambda batch: batch.unit):
                with self.units.write(
                    unit, {self.part: self.schema, image_records.PART: image_records.SCHEMA}
                ) as parts:
                    for batch in group:
                        yield batch, parts[self.part]
                        parts[image_records.PART].write_batch(batch.records)
                        self.encoded += len(batch)
                        advance(len(batch))
                self.seconds = time.monotonic() - started
                run.metrics(self.speed, step=unit)
                tally.add(self.units.read(image_records.PART, unit))
        tally.refuse_none_good()

    def work(self) -> list[tuple[int, np.ndarray]]:
        """Number and rows of each unit, without the rows that are not asked for, in reading order."""
        wanted = np.zeros(len(self.images.index), bool)
        wanted[self.rows] = True
        units = ((unit, rows[wanted[rows]]) for unit, rows in enumerate(self.images.index.units))
        return [(unit, rows) for unit, rows in units if len(rows)]

    @property
    def speed(self) -> dict[str, float]:
        """Images per second of this run, and the share of its time in which the device waited for images."""
        if not self.encoded:
            return {}
        return {
            "images_per_second": round(self.encoded / self.seconds, 2),
            "data_wait_share": round(self._clock.seconds / self.seconds, 4),
        }


def refuse_non_finite(finite: torch.Tensor, batch: ImageBatch, index: ImageIndex) -> None:
    """`finite` bool [B, N]: raises PipelineError naming the first image and patch whose feature is not a number."""
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
