"""How much of a pass over the images is anything but the encoder? Reading, decoding, copying, choosing, writing.

The stages run as they are, a clock counts what is spent inside the encoder; then the encoder alone runs on the very
same batches. On a CPU the decoding workers take cores from the encoder, so its own seconds grow during a pass: the
share says what is not encoder, the ratio to the encoder alone says what a pass really costs.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from benchmarks.measure import Measurement, Seconds, median_ratio, timed
from benchmarks.pictures import write_photographs
from models.clip.options import ClipOptions
from models.encoders.base import PatchEncoder
from models.tokenizers.kclip import NearestCentroid
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.image_batches import ImageSet
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.kinds import open_source
from pipeline.encoding.feature_options import FeatureOptions
from pipeline.encoding.networks import encoder_for
from pipeline.engine.batches import on_device
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from pipeline.stages.records import CodebookRecord
from storage.artifact import Artifact, Built, Recipe, build_artifact
from storage.codebook_file import Codebook, write_codebook
from storage.image_index import ImageIndex
from tests.stages import extract_features, index_images, tokenize_images

CLIP = ClipOptions(
    model="RN50-quickgelu", pretrained="", precision="fp32"
)  # random weights compute as long as good ones


@dataclass
class ForwardClock:
    """Seconds spent inside the encoder and inside the search for the nearest centroid, wherever they are called."""

    seconds: dict[type, float] = field(default_factory=lambda: defaultdict(float))
    _started: float = 0.0

    @contextmanager
    def running(self) -> Iterator["ForwardClock"]:
        before, after = register_module_forward_pre_hook(self._start), register_module_forward_hook(self._stop)
        try:
            yield self
        finally:
            before.remove()
            after.remove()

    def _start(self, module: torch.nn.Module, _: object) -> None:
        if isinstance(module, PatchEncoder | NearestCentroid):
            self._started = time.perf_counter()

    def _stop(self, module: torch.nn.Module, _: object, __: object) -> None:
        if isinstance(module, PatchEncoder | NearestCentroid):
            kind = NearestCentroid if isinstance(module, NearestCentroid) else PatchEncoder
            self.seconds[kind] += time.perf_counter() - self._started


@dataclass(frozen=True)
class Pass:
    """One pass over the images: the whole of it, and what its parts took."""

    whole: Seconds
    encoder: float
    assignment: float


def run(images: int = 64, rounds: int = 2, clip: ClipOptions = CLIP, vocabulary: int = 8192) -> list[Measurement]:
    """Measure the share of extract_features and tokenize_images that is not the encoder's."""
    alone: list[Seconds] = []
    passes: dict[str, list[Pass]] = {"extract": [], "tokenize": []}
    with tempfile.TemporaryDirectory(prefix="mapet-encoder-share-") as folder:
        write_photographs(Path(folder, "images"), count=images)
        for number in range(rounds):
            setting = _Setting.prepare(Path(folder), number, clip, vocabulary)
            alone.append(timed(setting.encode_alone))
            passes["extract"].append(_clocked(setting.extract))
            passes["tokenize"].append(_clocked(setting.tokenize))
    return [item for name, found in passes.items() for item in _measurements(name, found, alone)]


def _measurements(name: str, passes: list[Pass], alone: list[Seconds]) -> list[Measurement]:
    baseline = "the encoder alone on the same batches"
    against = f"{baseline}: {statistics.median(each.wall for each in alone):.1f} s"
    wall = median_ratio([each.whole.wall for each in passes], [each.wall for each in alone])
    cpu = median_ratio([each.whole.cpu for each in passes], [each.cpu for each in alone])
    other = statistics.median(1 - each.encoder / each.whole.wall for each in passes)
    assignment = statistics.median(each.assignment / each.whole.wall for each in passes)
    found = [
        Measurement(f"encoder_share.{name}.not_encoder", other, "share of the pass's wall time", against, wall),
        Measurement(
            f"encoder_share.{name}.cpu",
            statistics.median(each.whole.cpu for each in passes),
            "CPU-seconds of the pass, workers included",
            baseline,
            cpu,
        ),
    ]
    if assignment:
        found.append(Measurement(f"encoder_share.{name}.assignment", assignment, "share of the pass's wall time"))
    return found


def _clocked(work: Callable[[], object]) -> Pass:
    with ForwardClock().running() as clock:
        whole = timed(work)
    return Pass(whole, clock.seconds[PatchEncoder], clock.seconds[NearestCentroid])


@dataclass(frozen=True)
class _Setting:
    """The inputs of both stages in a data root of their own, so that nothing is found there."""

    clip: ClipOptions
    inputs: dict[str, Any]
    encoder: PatchEncoder
    batches: list[Tensor]
    codebook: Artifact

    @classmethod
    def prepare(cls, folder: Path, number: int, clip: ClipOptions, vocabulary: int) -> "_Setting":
        workspace = Workspace(Settings(data_root=folder / f"data{number}", device="cpu"))
        source = ImageSourceOptions(kind="folder", path=str(folder / "images"))
        images = index_images(source, workspace=workspace).artifact
        encoder = encoder_for(clip, workspace.settings)  # the stages ask for the same one and get this very object
        decoding = DecodingOptions()
        index = ImageIndex.read(images.path)
        image_set = ImageSet(index, open_source(source), decoding)
        shards = list(enumerate(index.shards))
        decoded = image_set.batches(shards, encoder.preprocessing, workspace.settings)
        batches = [batch.pixels for batch in on_device(decoded, torch.device("cpu"))]
        inputs = {"images": images, "source": source, "decoding": decoding, "workspace": workspace}
        return cls(clip, inputs, encoder, batches, _random_codebook(workspace, encoder, vocabulary))

    def encode_alone(self) -> None:
        for pixels in self.batches:
            self.encoder(pixels)

    def extract(self) -> None:
        extract_features(FeatureOptions(), encoder=self.clip, **self.inputs)

    def tokenize(self) -> None:
        tokenize_images(self.clip, codebook=self.codebook, **self.inputs)


def _random_codebook(workspace: Workspace, encoder: PatchEncoder, vocabulary: int) -> Artifact:
    """Make a codebook as large as the paper's, which so few images could not fill; searching it takes as long."""

    def build(folder: Path) -> Built:
        centroids = np.random.default_rng(0).standard_normal((vocabulary, encoder.width)).astype(np.float32)
        write_codebook(folder, Codebook(centroids, np.ones(vocabulary, np.int64), []))
        return Built({}, {})

    return build_artifact(workspace.settings.layout, Recipe(CodebookRecord.STAGE, 0, {"random": vocabulary}), build)[0]
