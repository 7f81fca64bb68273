"""What tokens look like: rows are tokens, columns are images that hold a patch of that token, the patch is outlined.

The paper's Fig. 3 (and 4: patches whose image is of another class) for a vocabulary of our own (Baraldi et al.,
"Learning to Mask and Permute Visual Tokens for Vision Transformer Pre-Training"). `choose_examples` decides what is
shown, from tokens and labels alone, the same on every machine; `draw_tile` shows it on exactly the pixels that the
tokenizer saw.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from models.preprocessing import Preprocessing
from pipeline.data.decode import read_and_decode
from pipeline.data.image_batches import ImageSet
from pipeline.sampling import patch_hashes

TOKENS, IMAGES = 12, 10  # rows and columns of the picture
# Colours of outlines: the image is of its token's most frequent class, of another class, without a label.
MATCH, MISMATCH, UNKNOWN = "#00b050", "#f0283c", "#ffb000"
_OUTLINE = 3  # pixels around the patch, never on it
_SMALLEST_TILE = 128
_LABEL_WIDTH, _GAP = 250, 6
_BLOCK = 1 << 16  # images whose tokens are sorted at once


@dataclass(frozen=True)
class Place:
    """One patch of one image. `matches`: the image is of its token's most frequent class; None when it has no label."""

    row: int
    patch: int
    matches: bool | None


@dataclass(frozen=True)
class TokenExamples:
    """A token: its patches, the images that hold it, their most frequent class (-1: none is labelled), some places."""

    token: int
    patches: int
    images: int
    majority: int
    share: float
    places: tuple[Place, ...]


def choose_examples(
    tokens: np.ndarray,
    *,
    labels: np.ndarray,
    image_ids: np.ndarray,
    counts: np.ndarray,
    rows: int = TOKENS,
    columns: int = IMAGES,
) -> tuple[TokenExamples, ...]:
    """Choose tokens from all over the frequency ranking, and for each token a patch in up to `columns` images.

    The used tokens, most frequent first, are cut into `rows` bands. Each band shows the token whose images agree most
    on a class (their share, divided by 1 + the rows that show this class already), among those found in at least
    `columns` images; without labels the middle one. Images and patches are
    those with the lowest hash of (token, image id, patch): another order of the images, or more images that do not hold
    the token, choose the same.

    Args:
        tokens: uint16 [images, patches]; ids that are not below K mark an invalid image.
        labels: [images], -1 where there is none.
        image_ids: uint64 [images].
        counts: [K], occurrences of each token.
    """
    holders, by_class = _images_per_token(tokens, labels, len(counts))
    labelled = by_class.sum(axis=1)
    share = by_class.max(axis=1, initial=0) / np.maximum(labelled, 1)
    majority = np.where(labelled > 0, by_class.argmax(axis=1) if by_class.size else -1, -1)
    return tuple(
        TokenExamples(
            token=token,
            patches=int(counts[token]),
            images=int(holders[token]),
            majority=int(majority[token]),
            share=float(share[token]),
            places=_places(tokens, token, int(majority[token]), labels, image_ids, columns),
        )
        for token in _spread_tokens(counts, np.minimum(holders, columns), share, majority, rows)
    )


def _images_per_token(tokens: np.ndarray, labels: np.ndarray, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """How many images hold each token, [K], and how many of each class, [K, classes]; an image counts once."""
    holders = np.zeros(vocabulary, np.int64)
    by_class = np.zeros((vocabulary, labels.max(initial=-1) + 1), np.int32)
    for start in range(0, len(tokens), _BLOCK):
        ordered = np.sort(tokens[start : start + _BLOCK], axis=1)
        is_first = ordered < vocabulary
        is_first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
        ids, label = ordered[is_first], labels[start : start + _BLOCK][np.nonzero(is_first)[0]]
        holders += np.bincount(ids, minlength=vocabulary)
        np.add.at(by_class, (ids[label >= 0], label[label >= 0]), 1)
    return holders, by_class


def _spread_tokens(
    counts: np.ndarray, enough: np.ndarray, share: np.ndarray, majority: np.ndarray, rows: int
) -> list[int]:
    used = np.flatnonzero(counts)
    ranking = used[np.lexsort((used, -counts[used]))]
    shown = np.zeros(majority.max(initial=-1) + 2, np.int64)  # tokens per class; the last place is "no class", -1
    chosen = []
    bands = np.array_split(ranking, min(rows, len(ranking)))
    for band in sorted(bands, key=lambda band: -share[band].max()):  # a class's row goes to who means it most
        from_middle = np.abs(np.arange(len(band)) - (len(band) - 1) / 2)
        worth = share[band] / (1 + shown[majority[band]])  # else the easiest class takes all rows
        chosen.append(int(band[np.lexsort((from_middle, -worth, -enough[band]))[0]]))
        shown[majority[chosen[-1]]] += 1
    return sorted(chosen, key=lambda token: (-counts[token], token))


def _places(
    tokens: np.ndarray, token: int, majority: int, labels: np.ndarray, image_ids: np.ndarray, columns: int
) -> tuple[Place, ...]:
    rows = np.flatnonzero((tokens == token).any(axis=1))
    hashes = patch_hashes(image_ids[rows], patches=1, seed=token)[:, 0]
    chosen = rows[np.lexsort((image_ids[rows], hashes))[:columns]]
    hashes = patch_hashes(image_ids[chosen], patches=tokens.shape[1], seed=token)
    hashes[tokens[chosen] != token] = np.iinfo(np.uint64).max
    return tuple(
        Place(int(row), int(patch), None if labels[row] < 0 else bool(labels[row] == majority))
        for row, patch in zip(chosen, hashes.argmin(axis=1), strict=True)
    )


def load_squares(
    examples: Sequence[TokenExamples], images: ImageSet, preprocessing: Preprocessing
) -> dict[int, np.ndarray]:
    """The squares that the tokenizer saw, uint8 [S, S, 3], by row; an image that can no longer be read is left out."""
    rows = sorted({place.row for example in examples for place in example.places})
    reader = images.source.reader()
    squares = {}
    for entry in images.index.entries(np.array(rows, np.int64)):
        options = images.decoding
        image = read_and_decode(reader, entry, preprocessing, preset=options.preset, max_pixels=options.max_pixels)
        if image.pixels is not None:
            squares[entry.row] = np.ascontiguousarray(image.pixels.transpose(1, 2, 0))
    reader.close()
    return squares


def tile_side(grid: tuple[int, int]) -> int:
    """A tile's side in pixels, without its margin: at least 128, and every patch a whole number of pixels."""
    step = math.lcm(*grid)
    return step * math.ceil(_SMALLEST_TILE / step)


def patch_box(patch: int, grid: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a patch (raster order) on a square of `side` pixels; right and bottom lie outside."""
    row, column = divmod(patch, grid[1])
    height, width = side // grid[0], side // grid[1]
    return column * width, row * height, (column + 1) * width, (row + 1) * height


def draw_tile(
    square: np.ndarray | None, place: Place, grid: tuple[int, int], *, background: str = "white"
) -> Image.Image:
    """One image with its patch outlined, tile side + 2 margins; gray where the image can no longer be read.

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
    colour = UNKNOWN if place.matches is None else MATCH if place.matches else MISMATCH
    left, top, right, bottom = patch_box(place.patch, grid, side)
    ring = (left, top, right + 2 * _OUTLINE - 1, bottom + 2 * _OUTLINE - 1)
    ImageDraw.Draw(tile).rectangle(ring, outline=colour, width=_OUTLINE)
    return tile


def draw_strip(example: TokenExamples, squares: Mapping[int, np.ndarray], grid: tuple[int, int]) -> Image.Image:
    """The tiles of one token side by side; as wide as `IMAGES` tiles, however many there are."""
    tiles = [draw_tile(squares.get(place.row), place, grid) for place in example.places]
    size = tile_side(grid) + 2 * _OUTLINE
    strip = Image.new("RGB", (max(IMAGES, len(tiles)) * size, size), "white")
    for column, tile in enumerate(tiles):
        strip.paste(tile, (column * size, 0))
    return strip


def draw_picture(labels: Sequence[str], strips: Sequence[Image.Image]) -> Image.Image:
    """All strips below each other, the label (some lines of text) left of each."""
    width = _LABEL_WIDTH + max((strip.width for strip in strips), default=0)
    picture = Image.new("RGB", (width, max(1, sum(strip.height + _GAP for strip in strips))), "white")
    pen, top = ImageDraw.Draw(picture), 0
    for label, strip in zip(labels, strips, strict=True):
        picture.paste(strip, (_LABEL_WIDTH, top))
        font = _font(18)
        text = "\n".join(_shortened(line, font) for line in label.splitlines())
        pen.multiline_text((12, top + strip.height / 2), text, "#202020", font, anchor="lm", spacing=7)
        top += strip.height + _GAP
    return picture


def _shortened(text: str, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= _LABEL_WIDTH - 24:
        return text
    while text and font.getlength(f"{text}…") > _LABEL_WIDTH - 24:
        text = text[:-1]
    return f"{text}…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font of the figures: it ships with matplotlib and covers more scripts than Pillow's own."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)
