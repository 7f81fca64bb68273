"""The choices of decoding: how images become pixels."""

from typing import Literal

from pydantic import Field

from models.options import Options
from pipeline.engine.fingerprint import SETTING

DecodePreset = Literal["exact", "fast"]


class DecodingOptions(Options):
    """How images become pixels, and what happens to those that cannot."""

    preset: DecodePreset = "exact"
    """`exact`: the very pixels of open_clip's own transform; `fast`: resized as 8-bit by torchvision, about twice as
    fast, 99.5 % of the pixels equal and the others off by at most 2 of 255."""

    max_pixels: int = Field(default=178_956_970, ge=1, le=2**40)
    """Larger images are refused as decompression bombs (Pillow's own limit)."""

    on_bad_image: Literal["mark", "fail"] = Field(default="mark", json_schema_extra=SETTING)
    """`mark`: record the image as invalid with its reason, its row stays; `fail`: stop at the first one."""

    max_bad_images: int = Field(default=100, ge=0, le=2**31 - 1, json_schema_extra=SETTING)
    """Stop when more images than this are bad: more is a broken data set, not a few broken files."""
