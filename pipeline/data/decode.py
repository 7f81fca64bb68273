"""From an image file's bytes to the square of 8-bit pixels that a tokenizer sees.

Convert to RGB, scale the shorter side to S (bicubic, antialiased), cut the central S x S: CLIP's evaluation transform
up to, not including, the normalisation, which runs on the device on `pixels / 255`.

- `exact` resizes in PIL. With the normalisation in float32 it gives the very numbers of open_clip's
  `image_transform(S, is_train=False)` (for colour and gray images; open_clip converts palettes and alpha only after the
  resize, which for a palette means nearest-neighbour).
- `fast` resizes with torchvision v2 on uint8: half the time, 99.5 % of the values equal, the others off by at most 2.

PIL is the reference for every file format: all decoders built on libjpeg-turbo agree with it bit for bit, EXIF rotation
is not applied (CLIP's transform does not), and a truncated file is damaged, never filled up with gray. Which files are
opened is said in `formats.py`, what becomes of transparency and of gray of more than 8 bits in `rgb.py`.
"""

import errno
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

import google_crc32c
import numpy as np
from PIL import Image, UnidentifiedImageError

from models.encoders.preprocessing import Preprocessing
from pipeline.data.decoding_options import DecodePreset
from pipeline.data.formats import open_image, why_no_image
from pipeline.data.rgb import to_rgb
from pipeline.data.sources.base import ImageReader
from storage.image_index import ImageEntry, ImageStatus

Cut = Callable[[Image.Image], np.ndarray]
_VALID = ImageStatus.VALID

# An image this much longer than wide is resized whatever `max_pixels` says; a 1 x 10,000 one would take 6 GB at 448.
_HARMLESS_ASPECT = 16
_FAULTS_OF_THE_MACHINE = frozenset(
    {errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN}
    | {errno.EHOSTUNREACH, errno.ENOTCONN, errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
_SECONDS_BEFORE_RETRIES = (0.1, 1.0)  # a network file system's hiccup; EIO may also be a bad sector, then it stays
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class DecodedImage:
    """One image, or why there is none.

    `pixels` is uint8 [3, side, side] (a view of [side, side, 3]), None unless `status` is VALID. `width`, `height` and
    PIL's `mode` are those of the file, 0 and "" where it could not be opened; `bytes` and `crc32c` those of the encoded
    file.
    """

    pixels: np.ndarray | None
    status: ImageStatus
    reason: str
    width: int
    height: int
    mode: str
    bytes: int
    crc32c: int


@dataclass(frozen=True)
class SquareOptions:
    """A square that is wanted of an image; of equal ones the pixels are equal."""

    image_size: int
    interpolation: str
    preset: DecodePreset
    max_pixels: int

    @classmethod
    def of(cls, preprocessing: Preprocessing, preset: DecodePreset, max_pixels: int) -> "SquareOptions":
        return cls(preprocessing.image_size, preprocessing.interpolation, preset, max_pixels)


class _Rejected(Exception):
    """Why there are no pixels; never leaves this module."""

    def __init__(self, status: ImageStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def read_and_decode(
    reader: ImageReader,
    entry: ImageEntry,
    preprocessing: Preprocessing,
    *,
    preset: DecodePreset,
    max_pixels: int,
    cut: Cut | None = None,
) -> DecodedImage:
    """Return `decode_image` of what `reader` gives; UNREADABLE when it gives nothing. Raises as
    `read_and_decode_squares`."""
    wanted = SquareOptions.of(preprocessing, preset, max_pixels)
    return read_and_decode_squares(reader, entry, [wanted], cut=cut)[0]


def read_and_decode_squares(
    reader: ImageReader, entry: ImageEntry, wanted: Sequence[SquareOptions], *, cut: Cut | None = None
) -> list[DecodedImage]:
    """Return `decode_squares` of what `reader` gives; UNREADABLE when it gives nothing.

    Raises:
        OSError: the machine is at fault and not the image (a file server that went away, too many open files): marking
            images as bad for that would publish tokens with holes.
    """
    try:
        data = read_encoded(reader, entry)
    except OSError as error:
        if is_machine_error(error):
            raise
        return [DecodedImage(None, ImageStatus.UNREADABLE, _describe(error), 0, 0, "", 0, 0)] * len(wanted)
    return decode_squares(data, wanted, cut=cut, name=entry.key or entry.container)


def is_machine_error(error: OSError) -> bool:
    """Return whether the machine is at fault (a file server that went away, too many open files), which says nothing
    about the image."""
    return error.errno in _FAULTS_OF_THE_MACHINE


def read_encoded(reader: ImageReader, entry: ImageEntry) -> bytes:
    """Return an image's bytes; tried again after what may be a hiccup. Raises OSError when they cannot be had."""
    for seconds in _SECONDS_BEFORE_RETRIES:
        try:
            return reader.read(entry)
        except OSError as error:
            if error.errno not in _FAULTS_OF_THE_MACHINE | {errno.EIO}:
                raise
        time.sleep(seconds)
    return reader.read(entry)


def decode_image(
    data: bytes,
    preprocessing: Preprocessing,
    *,
    preset: DecodePreset,
    max_pixels: int,
    cut: Cut | None = None,
    name: str = "",
) -> DecodedImage:
    """Decode, resize and crop one image file; of an animation or of several pages the first.

    `cut` makes another square than the central one of the RGB image, uint8 [3, side, side]; `preset` does not count
    then. `name` of the file tells formats that have no signature.

    Bad data is a result, not an exception, and the same data give the same `reason`. `max_pixels` bounds the memory: it
    is compared with the size in the file's header, before decoding, and with the size after resizing; PIL's own limit
    (`Image.MAX_IMAGE_PIXELS`, twice) stays in force above it.

    Raises:
        MemoryError: the machine is short of memory, which says nothing about the image.
    """
    wanted = SquareOptions.of(preprocessing, preset, max_pixels)
    return decode_squares(data, [wanted], cut=cut, name=name)[0]


def decode_squares(
    data: bytes, wanted: Sequence[SquareOptions], *, cut: Cut | None = None, name: str = ""
) -> list[DecodedImage]:
    """Decode an image file once, as `decode_image` says, and return every square that is wanted of it."""
    width, height, mode = 0, 0, ""
    refused: list[_Rejected | None] = [None for _ in wanted]
    squares: dict[SquareOptions, np.ndarray] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd but readable files (EXIF, palettes) and PIL's lower limit
            with _opened(data, name) as image:
                (width, height), mode = image.size, image.mode
                refused = [_why_too_large(width, height, one) for one in wanted]
                rgb = None if all(refused) else _to_rgb(image)
            for one, why in zip(wanted, refused, strict=True):
                if why is None and rgb is not None and one not in squares:
                    squares[one] = _square(rgb, one) if cut is None else cut(rgb)
    except _Rejected as rejected:
        refused = [why or rejected for why in refused]
    file = (width, height, mode, len(data), google_crc32c.value(data))
    return [
        DecodedImage(None, why.status, why.reason, *file) if why else DecodedImage(squares[one], _VALID, "", *file)
        for one, why in zip(wanted, refused, strict=True)
    ]


def _opened(data: bytes, name: str) -> Image.Image:
    if not data:
        raise _Rejected(ImageStatus.EMPTY, "the file is empty")
    try:
        return open_image(BytesIO(data), name)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise _Rejected(ImageStatus.NOT_AN_IMAGE, why_no_image(data)) from None
    except Image.DecompressionBombError as error:
        raise _Rejected(ImageStatus.TOO_LARGE, _describe(error)) from None
    except Exception as error:
        raise _Rejected(ImageStatus.DAMAGED, _describe(error)) from None


def _why_too_large(width: int, height: int, wanted: SquareOptions) -> _Rejected | None:
    image_size, max_pixels = wanted.image_size, wanted.max_pixels
    if width * height == 0:
        return _Rejected(ImageStatus.DAMAGED, f"{width} x {height} pixels")
    if width * height > max_pixels:
        reason = f"{width} x {height} = {width * height} pixels, max_pixels is {max_pixels}"
        return _Rejected(ImageStatus.TOO_LARGE, reason)
    short, long = sorted((width, height))
    resized = image_size * image_size * long // short
    if resized > max(max_pixels, _HARMLESS_ASPECT * image_size**2):
        reason = f"{width} x {height} would be resized to {resized} pixels, max_pixels is {max_pixels}"
        return _Rejected(ImageStatus.TOO_LARGE, reason)
    return None


def _to_rgb(image: Image.Image) -> Image.Image:
    try:
        return to_rgb(image)
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise _Rejected(ImageStatus.TOO_LARGE, _describe(error)) from None
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, EOFError, struct.error, ...
        raise _Rejected(ImageStatus.DAMAGED, _describe(error)) from None


def _square(rgb: Image.Image, wanted: SquareOptions) -> np.ndarray:
    """Return uint8 [3, side, side]."""
    from torchvision.transforms import InterpolationMode  # torch: seconds to import, and the sources need none

    size, interpolation = wanted.image_size, InterpolationMode(wanted.interpolation)
    if wanted.preset == "exact":
        from torchvision.transforms import functional as pil_functional

        resized = pil_functional.resize(rgb, [size], interpolation, antialias=True)
        return np.array(pil_functional.center_crop(resized, [size, size])).transpose(2, 0, 1)
    import torch
    from torchvision.transforms.v2 import functional as tensor_functional

    channels_first = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)  # a view: copying it first costs 15 %
    resized = tensor_functional.resize(channels_first, [size], interpolation, antialias=True)
    return tensor_functional.center_crop(resized, [size, size]).numpy()


def _describe(error: Exception) -> str:
    """Return one line that is the same on every machine and run: PIL prints addresses of objects, the system full
    paths."""
    system_text = error.strerror if isinstance(error, OSError) else None
    text = " ".join(_ADDRESS.sub("", system_text or str(error)).split())
    return f"{type(error).__name__}: {text}"[:300]
