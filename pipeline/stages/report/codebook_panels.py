"""A panel: what is shown of one token, its title, facts and pictures; for the page as parts, for a PNG file drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_INK, _SOFT = "#202020", "#5b6570"
_TITLE, _TEXT, _LABEL = 22, 15, 13  # font sizes
_PADDING, _GAP = 16, 8


@dataclass(frozen=True)
class Tile:
    """One picture, the class of its image ("" without one), and the image's name."""

    picture: Image.Image
    label: str
    name: str

    @property
    def jpeg(self) -> bytes:
        """The picture as a JPEG file, without thinned-out colour, which would blur the outline."""
        buffer = BytesIO()
        self.picture.save(buffer, "JPEG", quality=90, subsampling=0)
        return buffer.getvalue()


@dataclass(frozen=True)
class TileGroup:
    """Pictures side by side, what they have in common, and the colour of their outlines."""

    title: str
    colour: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class TokenPanel:
    """A token: the words above its pictures, and these in groups."""

    token: int
    title: str
    detail: str
    groups: Sequence[TileGroup]


def panels_png(panels: Sequence[TokenPanel]) -> bytes:
    """Return panels below each other as one PNG file, the same bytes for the same panels."""
    drawn = [_draw(panel) for panel in panels]
    picture = Image.new("RGB", (max(one.width for one in drawn), sum(one.height for one in drawn)), "white")
    top = 0
    for one in drawn:
        picture.paste(one, (0, top))
        top += one.height
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _draw(panel: TokenPanel) -> Image.Image:
    title, text = _font(_TITLE, bold=True), _font(_TEXT)
    lines = [_draw_text(panel.title, title, _INK), _draw_text(panel.detail, text, _SOFT)]
    for group in panel.groups:
        lines += [_draw_heading(group, text), *([_draw_tiles(group.tiles)] if group.tiles else [])]
    height = sum(line.height + _GAP for line in lines)
    picture = Image.new("RGB", (max(line.width for line in lines) + 2 * _PADDING, height + 2 * _PADDING), "white")
    top = _PADDING
    for line in lines:
        picture.paste(line, (_PADDING, top))
        top += line.height + _GAP
    return picture


def _draw_text(text: str, font: ImageFont.FreeTypeFont, colour: str) -> Image.Image:
    ascent, descent = font.getmetrics()
    line = Image.new("RGB", (int(font.getlength(text)) + 2, ascent + descent), "white")
    ImageDraw.Draw(line).text((0, 0), text, colour, font)
    return line


def _draw_heading(group: TileGroup, font: ImageFont.FreeTypeFont) -> Image.Image:
    text = _draw_text(group.title, font, _INK)
    mark = text.height - 6
    heading = Image.new("RGB", (mark + _GAP + text.width, text.height), "white")
    heading.paste(group.colour, (0, 3, mark, 3 + mark))
    heading.paste(text, (mark + _GAP, 0))
    return heading


def _draw_tiles(tiles: Sequence[Tile]) -> Image.Image:
    font = _font(_LABEL)
    side, text_height = tiles[0].picture.width, sum(font.getmetrics())
    strip = Image.new("RGB", (len(tiles) * (side + _GAP) - _GAP, side + text_height + 4), "white")
    pen = ImageDraw.Draw(strip)
    for place, tile in enumerate(tiles):
        left = place * (side + _GAP)
        strip.paste(tile.picture, (left, 0))
        pen.text((left + side / 2, side + 2), _shortened(tile.label, font, side), _INK, font, anchor="ma")
    return strip


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font of the figures: it ships with matplotlib and covers more scripts than Pillow's own."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf" / name, size)
