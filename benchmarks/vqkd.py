"""VQ-KD tokens end to end at 224 px: does anything but the encoder cost time? Against its forward pass alone.

The stage `tokenize_images` reads, decodes, encodes, searches 8192 codes and writes; then the Vision Transformer alone
runs on the very same batches. The checkpoint has the published sizes and random weights, which compute as long.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import Measurement, Seconds, median_ratio, timed
from benchmarks.pictures import write_photographs
from models.encoders.arithmetic import normalised
from models.tokenizers.base import Tokenizer
from models.vqkd.options import VQKDOptions
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.image_batches import ImageSet
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.kinds import open_source
from pipeline.encoding.networks import tokenizer_for
from pipeline.engine.batches import on_device
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from storage.image_index import ImageIndex
from tests.stages import index_images, tokenize_images
from tests.tiny_vqkd import write_tiny_vqkd

PUBLISHED = {"width": 768, "depth": 12, "patch": 16, "patches": 196, "vocabulary": 8192, "code_width": 32}


def run(
    images: int = 48, rounds: int = 3, sizes: dict[str, int] = PUBLISHED, image_size: int = 224
) -> list[Measurement]:
    """Measure images per second of the whole pass, and their ratio to the encoder's."""
    passes: list[Seconds] = []
    alone: list[Seconds] = []
    with tempfile.TemporaryDirectory(prefix="mapet-vqkd-") as folder:
        write_photographs(Path(folder, "images"), count=images)
        options = VQKDOptions(
            checkpoint=write_tiny_vqkd(Path(folder, "vqkd.pth"), **sizes), image_size=image_size, precision="fp32"
        )
        for number in range(rounds):
            workspace = Workspace(Settings(data_root=Path(folder, f"data{number}"), device="cpu"))
            whole, encoder = _works(options, Path(folder, "images"), workspace)
            passes.append(timed(whole))
            alone.append(timed(encoder))
    rate, encoder_rate = (images / statistics.median(each.wall for each in found) for found in (passes, alone))
    # Rates: time of the encoder over time of the pass.
    wall = median_ratio([each.wall for each in alone], [each.wall for each in passes])
    cpu = median_ratio([each.cpu for each in passes], [each.cpu for each in alone])
    against = f"the encoder alone on the same batches: {encoder_rate:.3g} images/s"
    used = statistics.median(each.cpu for each in passes)
    return [
        Measurement("vqkd.end_to_end", rate, "images/s", against, wall),
        Measurement("vqkd.cpu", used, "CPU-seconds of the pass, workers included", "the encoder alone", cpu),
    ]


def _works(
    options: VQKDOptions, images: Path, workspace: Workspace
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Prepare the stage, in a data root without anything, and its encoder alone, on batches already decoded."""
    source = ImageSourceOptions(kind="folder", path=str(images))
    indexed, decoding = index_images(source, workspace=workspace).artifact, DecodingOptions()
    tokenizer = tokenizer_for(options, workspace.settings)  # the stage asks for the same one and gets this very object
    index = ImageIndex.read(indexed.path)
    image_set = ImageSet(index, open_source(source), decoding)
    shards = list(enumerate(index.shards))
    decoded = image_set.batches(shards, tokenizer.preprocessing, workspace.settings)
    batches = [batch.pixels for batch in on_device(decoded, torch.device("cpu"))]

    def whole() -> None:
        tokenize_images(options, images=indexed, source=source, decoding=decoding, workspace=workspace)

    return whole, lambda: _encode(tokenizer, batches)


@torch.no_grad()
def _encode(tokenizer: Tokenizer, batches: list[Tensor]) -> None:
    for pixels in batches:
        tokenizer.encoder.forward_features(normalised(pixels, tokenizer.mean, tokenizer.std))  # type: ignore[operator]
