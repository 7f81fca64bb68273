"""Images with the patch of a token outlined, on exactly the pixels that the tokenizer saw.

Every picture of a codebook is made here: those of the report and those of `mapet codebook`.
"""

import math
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

from models.encoders.preprocessing import Preprocessing
from pipeline.data.decode import read_and_decode
from pipeline.data.image_batches import ImageSet
from pipeline.engine.errors import PipelineError
from pipeline.stages.report.token_examples import Occurrence

# Colours of outlines: the image is of its token's majority class, of another class, without a label.
MATCH, MISMATCH, UNKNOWN = "#00b050", "#f0283c", "#ffb000"
_OUTLINE = 3  # pixels around the patch, never on it
_SMALLEST_TILE, _SMALLEST_PATCH = 128, 16


def load_squares(
    rows: Iterable[int], images: ImageSet, preprocessing: Preprocessing, *, strict: bool
) -> dict[int, np.ndarray]:
    """Return the squares that the tokenizer saw, uint8 [side, side, 3], by row.

    Args:
        strict: an image that can no longer be read is an error; otherwise it is left out, so that a long run does not
            end without its report.

    Raises:
        PipelineError: an image is no longer what was tokenized, or it cannot be read and `strict`.
    """
    reader, options = images.source.reader(), images.decoding
    squares = {}
    for entry in images.index.entries(np.array(sorted(set(rows)), np.int64)):
        image = read_and_decode(reader, entry, preprocessing, preset=options.preset, max_pixels=options.max_pixels)
        if strict and image.pixels is None:
            raise PipelineError(
                f"{entry.name}: {image.reason}; it was readable when its tokens were made: mend it, or name the "
                "place of the images that were tokenized"
            )
        if image.pixels is not None:
            squares[entry.row] = np.ascontiguousarray(image.pixels.transpose(1, 2, 0))
    reader.close()
    return squares


def tile_side(grid: tuple[int, int]) -> int:
    """Return a tile's side in pixels, without its margin: at least 128, a patch 16, and every patch a whole number of
    them."""
    step = math.lcm(*grid)
    return step * math.ceil(max(_SMALLEST_TILE, _SMALLEST_PATCH * max(grid)) / step)


def patch_box(patch: int, grid: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """Return the left, top, right, bottom of a patch (raster order) on a square of `side` pixels; right and bottom lie
    outside."""
    row, column = divmod(patch, grid[1])
    height, width = side // grid[0], side // grid[1]
    return column * width, row * height, (column + 1) * width, (row + 1) * height


def outline_colour(matches: bool | None) -> str:
    return UNKNOWN if matches is None else MATCH if matches else MISMATCH


def draw_tile(
    square: np.ndarray | None, place: Occurrence, grid: tuple[int, int], *, background: str = "white"
) -> Image.Image:
    """Return one image with its patch outlined, tile side + 2 margins; gray where the image can no longer be read.

    The outline lies around the patch, at the image's edge on the margin, so all pixels of the patch can be seen.
    """
    side = tile_side(grid)
    tile = Image.new("RGB", (side + 2 * _OUTLINE,) * 2, background)
    if square is None:
        tile.paste("#808080", (_OUTLINE, _OUTLINE, _OUTLINE + side, _OUTLINE + side))
        return tile
    picture = Image.fromarray(square)
    # Small images are enlarged without smoothing: a patch's border must not bleed into its neighbour.
    resample = Image.Resampling.NEAREST if side >= picture.width else Image.Resampling.LANCZOS
    tile.paste(picture.resize((side, side), resample), (_OUTLINE, _OUTLINE))
    left, top, right, bottom = patch_box(place.patch, grid, side)
    ring = (left, top, right + 2 * _OUTLINE - 1, bottom + 2 * _OUTLINE - 1)
    ImageDraw.Draw(tile).rectangle(ring, outline=outline_colour(place.matches), width=_OUTLINE)
    return tile
