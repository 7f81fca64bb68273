"""Which image files are read, and how they are opened: one answer for folders, tars, Parquet files and label maps.

Taken is whatever the installed Pillow reads, but for the formats of `_CLOSED`. A file's content decides what it is, not
its name (`.jpg` files of the web are often WebP), as long as the format has a signature worth the name. The others
(TGA has none at all) are tried only on a file whose ending names them: noise must not pass for a picture.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import BinaryIO

from PIL import Image

# Recognised by content, whatever the file is called.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
_CLOSED = frozenset(
    {"EPS"}  # starts Ghostscript
    | {"WMF", "BUFR", "GRIB", "HDF5", "MPEG"}  # Pillow knows them, and leaves the decoding to others
    | {"IPTC", "PCD"}  # wrappers of other files; .pcd is more often a cloud of points
)


def _readable() -> Mapping[str, str]:
    """Return the format that each ending names, of those that are read; endings are lower case, with their dots."""
    open_formats = (set(Image.OPEN) | {"MPO"}) - _CLOSED  # MPO: several JPEGs in one, opened as JPEG
    named = Image.registered_extensions()  # loads all of Pillow's formats
    return MappingProxyType({ending: named[ending] for ending in sorted(named) if named[ending] in open_formats})


Image.init()
_FORMAT_OF = _readable()
ENDINGS = tuple(_FORMAT_OF)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEIC_ADVICE = "Pillow does not read HEIC: convert to JPEG or PNG first (heif-convert, or ImageMagick's mogrify)"
_ADVICE = {
    **dict.fromkeys((".heic", ".heif", ".hif"), HEIC_ADVICE),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2"), "raw photographs: develop them"),
    ".tar": "images.kind=webdataset reads tars",
    ".parquet": "images.kind=parquet reads these",
    ".zip": "unpack them",
    "": "without an ending nothing is taken for an image: give them one",
}


def ending_of(name: str) -> str:
    """Return the ending of a file's name, lower case with its dot; "" when there is none."""
    return PurePosixPath(name).suffix.lower()


def open_image(file: Path | BinaryIO, name: str = "") -> Image.Image:
    """Return the image in `file`, not loaded yet; of an animation or of several pages the first. Raises what PIL
    raises.

    Args:
        name: what the file is called, for formats that cannot be told by their content.
    """
    named = _FORMAT_OF.get(ending_of(name), "")
    return Image.open(file, formats=FORMATS if named in (*FORMATS, "MPO", "") else (*FORMATS, named))


def why_no_image(data: bytes) -> str:
    """Say of a file in none of the formats that are tried how it begins, or what to do with it."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return HEIC_ADVICE
    return f"not one of {', '.join(FORMATS)}: begins with {data[:12]!r}"


def endings_in_words(counts: Mapping[str, int]) -> str:
    """Write counts of files by their endings as `4 .heic (what to do with them), 1 .txt`: most frequent first; "" for
    none."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(
        f"{count:,} {ending or 'without an ending'}" + (f" ({_ADVICE[ending]})" if ending in _ADVICE else "")
        for ending, count in ordered
    )
