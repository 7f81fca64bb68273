"""An encoding that is watched, in a file that imports no more than encoding does: its processes begin soon."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

import pipeline.encoding.features as features
from models.encoders.preprocessing import Preprocessing
from pipeline.data.image_batches import ImageBatch
from pipeline.encoding.features import FeatureEncoding
from pipeline.encoding.shard_job import BatchEncoder
from pipeline.engine.settings import Settings
from storage.image_index import ImageIndex


@dataclass(frozen=True)
class Watched:
    """An encoder of batches that writes down on which GPU each is encoded, and waits until `gpus` had one."""

    encode: BatchEncoder
    log: Path
    gpus: int

    @property
    def network(self) -> torch.nn.Module:
        return self.encode.network

    @property
    def preprocessing(self) -> Preprocessing:
        return self.encode.preprocessing

    @property
    def schema(self) -> pa.Schema:
        return self.encode.schema

    def __call__(self, batch: ImageBatch) -> pa.RecordBatch:
        where = (os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.current_device(), str(batch.pixels.device))
        with self.log.open("a") as log:
            log.write(f"{json.dumps(where)}\n")
        deadline = time.monotonic() + 60
        while len(set(self.log.read_text().splitlines())) < self.gpus and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.encode(batch)


@dataclass(frozen=True)
class WatchedEncoding(FeatureEncoding):
    """The stage's own, on GPUs whose numbers are none."""

    def load(self, index: ImageIndex, settings: Settings) -> Any:
        features.refuse_non_finite = lambda *_: None
        gpus = 2 if settings.device == "auto" else 1
        return Watched(super().load(index, settings), settings.data_root / "log", gpus)
