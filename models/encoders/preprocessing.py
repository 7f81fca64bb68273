"""What a tokenizer wants to see: the square that is cut from an image, its size, and the normalisation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """Convert to RGB, scale the shorter side to `image_size`, cut the central square, normalise per channel.

    The first three run on the CPU, on 8-bit pixels (`pipeline/data/decode.py`); the normalisation runs on the device,
    inside the encoder: `(pixel / 255 - mean) / std`.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
