"""Decoding and resizing on one core: images per CPU-second of both presets, against open_clip's own transform.

open_clip's also makes a float32 tensor and normalises it, which here happens on the encoder's device; so a ratio above
one is partly work that was moved, not saved.
"""

import statistics
from collections.abc import Callable
from functools import partial
from io import BytesIO

import torch
from PIL import Image

from benchmarks.measure import Measurement, Seconds, interleaved, median_ratio
from benchmarks.pictures import photographs
from models.encoders.preprocessing import Preprocessing
from pipeline.data.decode import decode_image
from pipeline.data.decoding_options import DecodePreset, DecodingOptions

PRESETS: tuple[DecodePreset, ...] = ("exact", "fast")


def run(images: int = 100, sizes: tuple[int, ...] = (448, 224), rounds: int = 5) -> list[Measurement]:
    """Measure the images per CPU-second of each preset at each size."""
    data = photographs(images)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a decoding worker
    try:
        return [item for size in sizes for item in _at(size, data, rounds)]
    finally:
        torch.set_num_threads(threads)


def _at(size: int, data: list[bytes], rounds: int) -> list[Measurement]:
    works: dict[str, Callable[[], object]] = {preset: partial(_decode_all, data, size, preset) for preset in PRESETS}
    works["open_clip"] = _open_clip(data, size)
    for work in works.values():
        work()  # imports, first allocations
    seconds = interleaved(works, rounds=rounds)
    rates = {name: _rates(found, len(data)) for name, found in seconds.items()}
    against = f"open_clip.image_transform: {statistics.median(rates['open_clip']):.0f}"
    return [
        Measurement(
            f"decode.{preset}.{size}",
            statistics.median(rates[preset]),
            "images per CPU-second",
            against,
            median_ratio(rates[preset], rates["open_clip"]),
        )
        for preset in PRESETS
    ]


def _rates(seconds: list[Seconds], images: int) -> list[float]:
    return [images / each.cpu for each in seconds]


def _decode_all(data: list[bytes], size: int, preset: DecodePreset) -> None:
    preprocessing = Preprocessing(size, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    for each in data:
        decode_image(each, preprocessing, preset=preset, max_pixels=DecodingOptions().max_pixels)


def _open_clip(data: list[bytes], size: int) -> Callable[[], object]:
    import open_clip

    transform = open_clip.image_transform(size, is_train=False)

    def work() -> None:
        for each in data:
            transform(Image.open(BytesIO(each)))

    return work
