"""The encoder of the paper on a GPU: RN50x64 at 448 pixels, in plain layout, channels-last, and compiled.

Each variant with and without the nearest of 8192 centroids, in bf16 and fp16; images per second and peak GPU memory.
Random weights compute as long as good ones. The pixels are on the GPU: decoding is measured elsewhere.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Measurement, median_ratio
from benchmarks.pictures import photographs
from models.clip import LAST_STAGE, ClipOptions, ClipPatchEncoder, load_clip
from models.clip_arithmetic import AUTOCAST
from models.tokenizers.kclip import NearestCentroid
from pipeline.data.decode import decode_image
from pipeline.data.image_batches import DecodingOptions

MODEL = "RN50x64-quickgelu"
Precision = Literal["bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16")
VARIANTS = ("eager", "channels_last", "compiled")
Work = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """How much work a measurement is."""

    batch: int = 64
    batches: int = 10  # timed together, after as many as `warm_up`
    warm_up: int = 3
    rounds: int = 3
    vocabulary: int = 8192


def run() -> list[Measurement]:
    """Nothing, and a word about it, where there is no GPU."""
    if not torch.cuda.is_available():
        print("gpu: not run, torch.cuda.is_available() is False")
        return []
    return [item for precision in PRECISIONS for item in measure(precision)]


def measure(
    precision: Precision,
    *,
    model: str = MODEL,
    size: Size | None = None,
    device: str = "cuda",
    variants: tuple[str, ...] = VARIANTS,
) -> list[Measurement]:
    """All variants in one precision, in turns. Another device is for the tests: it measures no memory."""
    size = size or Size()
    options = ClipOptions(model=model, pretrained="", precision=precision)
    encoders = {name: _encoder(name, options, device) for name in variants}
    pixels = _pixels(next(iter(encoders.values())), size.batch, device)
    codebook = NearestCentroid(_centroids(encoders[variants[0]], pixels, size.vocabulary))
    works: dict[str, Work] = {}
    for name, encoder in encoders.items():
        works[name] = encoder
        works[f"{name}+assign"] = lambda images, encoder=encoder: codebook(encoder(images))
    peaks = {name: _warm_up(work, pixels, size.warm_up) for name, work in works.items()}
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(size.rounds):
        for name, work in works.items():
            rates[name].append(_images_per_second(work, pixels, size.batches))
    return _measurements(f"gpu.{precision}", rates, peaks, first=variants[0])


class PlainLayout(ClipPatchEncoder):
    """The encoder without its channels-last layout: what there would be without that line."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.float() / 255 - self.mean) / self.std
        dtype = AUTOCAST[self.precision]
        with torch.autocast(pixels.device.type, dtype=dtype, enabled=dtype is not None):
            output = self.trunk.forward_intermediates(pixels, indices=[LAST_STAGE], intermediates_only=True)
        return output["image_intermediates"][0].flatten(2).transpose(1, 2).to(torch.float16).contiguous()


def _encoder(variant: str, options: ClipOptions, device: str) -> ClipPatchEncoder:
    encoder = load_clip(options, device=device, compile_trunk=variant == "compiled")
    if variant == "eager":
        encoder.trunk.to(memory_format=torch.contiguous_format)
        encoder.__class__ = PlainLayout  # same weights, same preprocessing, another forward
    return encoder


def _pixels(encoder: ClipPatchEncoder, batch: int, device: str) -> Tensor:
    """uint8 [batch, 3, S, S] of photographs: in noise all patches are alike and their nearest centroids in doubt."""
    limit = DecodingOptions().max_pixels
    decoded = (
        decode_image(data, encoder.preprocessing, preset="exact", max_pixels=limit) for data in photographs(batch)
    )
    return torch.from_numpy(np.stack([image.pixels for image in decoded if image.pixels is not None])).to(device)


def _centroids(encoder: ClipPatchEncoder, pixels: Tensor, vocabulary: int) -> Tensor:
    """Means of pairs of the patch features at hand, [vocabulary, D]."""
    rows = encoder(pixels).flatten(0, 1).float()
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(len(rows), (vocabulary, 2), generator=generator).to(rows.device)
    return rows[pairs].mean(1)


def _warm_up(work: Work, pixels: Tensor, batches: int) -> int:
    """Compile, choose algorithms, fill caches; then peak bytes of GPU memory of one more batch, weights included."""
    for _ in range(batches):
        work(pixels)
    if not pixels.is_cuda:
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work(pixels)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def _images_per_second(work: Work, pixels: Tensor, batches: int) -> float:
    _wait(pixels)
    started = time.perf_counter()
    for _ in range(batches):
        work(pixels)
    _wait(pixels)
    return batches * len(pixels) / (time.perf_counter() - started)


def _wait(pixels: Tensor) -> None:
    if pixels.is_cuda:
        torch.cuda.synchronize()


def _measurements(
    prefix: str, rates: dict[str, list[float]], peaks: dict[str, int], *, first: str
) -> list[Measurement]:
    found = []
    for name, values in rates.items():
        against = f"{first}: {statistics.median(rates[first]):.1f}"
        ratio = median_ratio(values, rates[first])
        found.append(Measurement(f"{prefix}.{name}", statistics.median(values), "images/s", against, ratio))
        if peaks[name]:
            against = f"{first}: {peaks[first] / 2**30:.2f} GiB"
            ratio = peaks[name] / peaks[first]
            found.append(Measurement(f"{prefix}.{name}.memory", peaks[name] / 2**30, "GiB", against, ratio))
    return found
