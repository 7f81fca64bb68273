"""Makes the odd files that image collections hold: real photographs, stored strangely or damaged."""

from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from storage.image_index import ImageStatus


@dataclass(frozen=True)
class OddImage:
    """One file, what must become of it, PIL's mode of it and a part of the reason."""

    data: bytes
    status: ImageStatus = ImageStatus.VALID
    mode: str = "RGB"
    reason: str = ""


@cache
def photograph(width: int = 120, height: int = 90) -> Image.Image:
    """Return a scaled photograph (427 x 640 in scikit-learn); do not change it."""
    return Image.fromarray(load_sample_images().images[0]).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def jpeg(width: int = 120, height: int = 90, **options: Any) -> bytes:
    return encoded(photograph(width, height), "JPEG", **{"quality": 90, **options})


def readable() -> dict[str, OddImage]:
    """Return files that are odd, but hold an image."""
    photo = photograph()
    ramp = np.linspace(0, 65535, 120 * 90).astype(np.uint16).reshape(90, 120)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # orientation: turn by 90 degrees
    alpha = photo.convert("RGBA")
    alpha.putalpha(128)
    return {
        "progressive.jpg": OddImage(jpeg(progressive=True)),
        "full_chroma.jpg": OddImage(jpeg(subsampling=0)),
        "cmyk.jpg": OddImage(encoded(photo.convert("CMYK"), "JPEG"), mode="CMYK"),
        "gray.jpg": OddImage(encoded(photo.convert("L"), "JPEG"), mode="L"),
        "png_named.JPEG": OddImage(encoded(photo, "PNG")),
        "palette.png": OddImage(encoded(photo.quantize(16), "PNG"), mode="P"),
        "palette_with_transparency.png": OddImage(encoded(photo.quantize(16), "PNG", transparency=b"\0\x80"), mode="P"),
        "alpha.png": OddImage(encoded(alpha, "PNG"), mode="RGBA"),
        "gray_alpha.png": OddImage(encoded(photo.convert("LA"), "PNG"), mode="LA"),
        "one_bit.png": OddImage(encoded(photo.convert("1"), "PNG"), mode="1"),
        "sixteen_bit.png": OddImage(encoded(Image.fromarray(ramp), "PNG"), mode="I;16"),
        "animated.gif": OddImage(animation("GIF"), mode="P"),
        "animated.webp": OddImage(animation("WEBP")),
        "still.webp": OddImage(encoded(photo, "WEBP")),
        "still.bmp": OddImage(encoded(photo, "BMP")),
        "still.tif": OddImage(encoded(photo, "TIFF")),
        "two_pictures.mpo": OddImage(encoded(photo, "MPO", save_all=True, append_images=[photo])),
        "rotated_by_exif.jpg": OddImage(jpeg(exif=rotated.tobytes())),
        "bad_exif.jpg": OddImage(jpeg(exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")),
        "trailing_junk.jpg": OddImage(jpeg() + b"\0junk" * 100),
    }


def unreadable() -> dict[str, OddImage]:
    """Return files that hold no image, or only a part of one."""
    whole, png = jpeg(), encoded(photograph(), "PNG")
    damaged, no_image = ImageStatus.DAMAGED, ImageStatus.NOT_AN_IMAGE
    return {
        "empty.jpg": OddImage(b"", ImageStatus.EMPTY, "", "empty"),
        "half.jpg": OddImage(whole[: len(whole) // 2], damaged, "RGB", "truncated"),
        "almost_whole.jpg": OddImage(whole[: len(whole) * 95 // 100], damaged, "RGB", "truncated"),
        "half.png": OddImage(png[: len(png) // 2], damaged, "RGB", "truncated"),
        "wrong_checksum.png": OddImage(png[:60] + b"\0\0\0\0" + png[64:], damaged, "RGB", ""),
        "garbage.jpg": OddImage(bytes(range(7, 250)) * 4, no_image, "", "begins with"),
        "page.jpg": OddImage(b"<!DOCTYPE html><html>404 Not Found</html>", no_image, "", "<!DOCTYPE"),
        "drawing.jpg": OddImage(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", no_image, "", "begins with"),
    }


def animation(format_name: str) -> bytes:
    """Return two frames: the photograph, then its negative."""
    photo = photograph()
    negative = Image.eval(photo, lambda value: 255 - value)
    return encoded(photo, format_name, save_all=True, append_images=[negative])
