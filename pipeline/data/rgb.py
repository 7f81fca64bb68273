"""From any image that PIL reads to 8-bit RGB. PIL's own conversion, but where that would leave nothing to see.

- **Gray of more than 8 bits** (PIL's modes I;16, I, F), which PIL clips at 255, is scaled. The range is 0 to 255, 4095
  (what cameras, microscopes and scanners of 12 bits write into 16) or 65535, the first that holds the image's largest
  value; of floating-point values 0 to 1 before these. Negative or larger values: the image's own smallest to largest.
  So is an image that its range would leave with a single value, though it has several.
- **Transparency** is dropped, as by `convert("RGB")` in open_clip: what colour lies under it shows. Where all of an
  image has one colour and only the transparency draws it (icons), it is laid on white, or on black if it is light.
- **Colour of 16 bits a channel** is read by PIL as its high bytes; CMYK, YCbCr, LAB, HSV and palettes are PIL's.
- Of an animation or of several pages the first is taken.
"""

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION

_DEEP_GRAY = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_RANGES = (255, 4095, 65535)
_LIGHT = 128


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in mode RGB. Raises what PIL raises on damage, ValueError for values that are no numbers."""
    image.load()
    if image.mode in _DEEP_GRAY:
        gray = Image.fromarray(_eight_bits(np.asarray(image)))
        return (ImageOps.invert(gray) if _is_negative(image) else gray).convert("RGB")
    whole = image.convert("LA") if image.mode == "La" else image  # PIL cannot in one step
    rgb = whole.convert("RGB")
    if whole.has_transparency_data and _is_constant(rgb):
        return _drawn_by_transparency(whole, rgb)
    return rgb


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale gray values to uint8 of the same shape. Raises ValueError for NaN and infinite ones."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise ValueError("the image has values that are no numbers (NaN or infinite)")
    ranges = _RANGES if np.issubdtype(values.dtype, np.integer) else (1, *_RANGES)
    top = next((top for top in ranges if low >= 0 and high <= top), None)
    scaled = _scaled(values, low, high) if top is None else _scaled(values, 0, top)
    lost = low < high and scaled.min() == scaled.max()
    return _scaled(values, low, high) if lost else scaled


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return uint8: `low` becomes 0 and `high` 255."""
    per_level = (high - low) / 255 or 1.0
    return np.rint((values.astype(np.float64) - low) / per_level).astype(np.uint8)


def _is_negative(image: Image.Image) -> bool:
    """Return whether 0 is white: of TIFFs of this kind PIL inverts those of up to 8 bits, and not those of more."""
    return getattr(image, "tag_v2", {}).get(PHOTOMETRIC_INTERPRETATION) == 0


def _is_constant(image: Image.Image) -> bool:
    bounds = image.getextrema()
    return all(low == high for low, high in bounds)  # type: ignore[misc]


def _drawn_by_transparency(image: Image.Image, rgb: Image.Image) -> Image.Image:
    alpha = image.convert("RGBA").getchannel("A")
    is_light = np.asarray(rgb.convert("L"))[0, 0] >= _LIGHT
    return Image.composite(rgb, Image.new("RGB", rgb.size, "black" if is_light else "white"), alpha)
