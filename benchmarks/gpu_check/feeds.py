"""Step `feeds`: images per second that reach the device: decoded by sixteen workers, and as squares kept in 8 bits.

What the steps `training` and `encoder` say has to be fed: the smaller rate is a run's.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_check.checks import Attempt, Check, Setup
from benchmarks.gpu_check.clock import seconds, wait
from benchmarks.pictures import write_photographs
from models.encoders.preprocessing import Preprocessing
from pipeline.data.decoding_options import DecodePreset, DecodingOptions
from pipeline.data.image_batches import ImageSet
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.kinds import open_source
from pipeline.engine.batches import on_device
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from pipeline.stages.index_images import index_images
from storage.image_index import ImageIndex

_BATCH = 128
_SQUARE = Preprocessing(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def attempts(setup: Setup) -> Iterator[Attempt]:
    with tempfile.TemporaryDirectory(prefix="mapet-feeds-") as folder:
        presets: tuple[DecodePreset, ...] = ("fast", "exact")
        for preset in presets:
            yield f"decoded, {preset}", lambda preset=preset: _decoded(Path(folder, preset), preset, setup)
        yield "kept squares", lambda: _kept(Path(folder, "squares.npy"), setup)


def _decoded(folder: Path, preset: DecodePreset, setup: Setup) -> Iterator[Check]:
    """Measure how fast encoding gets photographs of ImageNet's usual size, from the first batch on: until then workers
    start."""
    write_photographs(folder / "images", count=setup.size(1024, 6))
    source = ImageSourceOptions(path=f"{folder}/images")
    indexed = index_images(source, workspace=Workspace(Settings(data_root=folder / "data"))).artifact
    index = ImageIndex.read(indexed.path)
    workers, size = (1, 2) if setup.quick else (min(16, len(os.sched_getaffinity(0))), _BATCH)
    shards = list(enumerate([*index.shards] * setup.size(16, 1)))
    image_set = ImageSet(index, open_source(source), DecodingOptions(preset=preset))
    settings = Settings(device=setup.device, workers=workers, batch_size=size)
    device, count, started = torch.device(setup.device), 0, 0.0
    for batch in on_device(image_set.batches(shards, _SQUARE, settings), device):
        if started:
            count += len(batch)
        else:
            wait(setup.device)
            started = time.perf_counter()
    wait(setup.device)
    rate = count / (time.perf_counter() - started)
    yield Check(f"decoded, {preset}", "measured", rate, "images/s", f"{workers} workers, {_SQUARE.image_size} px")


def _kept(path: Path, setup: Setup) -> Iterator[Check]:
    """Measure reading random rows of a file in the page cache, as pre-training would if squares were decoded once."""
    count, size, side = setup.size(16_384, 8), setup.size(_BATCH, 2), _SQUARE.image_size
    file = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, side, side))
    rng = np.random.default_rng(0)
    for first in range(0, count, size):
        file[first : first + size] = rng.integers(0, 256, (size, 3, side, side), np.uint8)
    host = torch.empty(size, 3, side, side, dtype=torch.uint8, pin_memory=setup.is_cuda)

    def read() -> None:
        np.take(file, rng.choice(count, size, replace=False), axis=0, out=host.numpy())
        host.to(setup.device, copy=True)

    took = seconds(read, setup.device, count=setup.size(100, 2))
    yield Check("kept squares", "measured", size / took, "images/s", f"read by one process, {side} px")
