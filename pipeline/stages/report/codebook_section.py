"""The section "What tokens look like" of a page: tokens with their matches and mismatches, and how to read them."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.image_batches import ImageSet
from pipeline.engine.words import counted
from pipeline.stages.report.build_content import BuildContent
from pipeline.stages.report.build_facts import share
from pipeline.stages.report.codebook_panels import Tile, TileGroup, TokenPanel, panels_png
from pipeline.stages.report.codebook_pictures import draw_tile, load_squares, outline_colour
from pipeline.stages.report.token_examples import Occurrence, TokenExamples, choose_examples
from pipeline.stages.report.token_statistics import class_name, purest_tokens, spread_tokens

PUREST, SPREAD = 6, 8  # tokens in a report: with labels, without
THE_PUREST = "the {} of highest purity, so the vocabulary's good side"


@dataclass(frozen=True)
class CodebookSection:
    """Tokens, and some paragraphs on how to read their pictures."""

    introduction: Sequence[str]
    panels: Sequence[TokenPanel]

    @property
    def picture(self) -> bytes:
        """All panels in one PNG file."""
        return panels_png(self.panels)

    @property
    def patches_shown(self) -> int:
        return sum(len(group.tiles) for panel in self.panels for group in panel.groups)


def report_section(content: BuildContent, images: ImageSet, *, pictures: int = 5) -> CodebookSection:
    """Choose for a build's report the purest tokens; without labels, tokens from all over the frequency ranking."""
    if content.counted.labelled:
        chosen, which = purest_tokens(content.statistics, PUREST), THE_PUREST
    else:
        chosen, which = spread_tokens(content.statistics, SPREAD), "{} from frequent to rare"
    return codebook_section(content, images, chosen, which=which, pictures=pictures, strict=False)


def codebook_section(
    content: BuildContent, images: ImageSet, chosen: Sequence[int], *, which: str, pictures: int, strict: bool
) -> CodebookSection:
    """Show each of the chosen tokens with at most `pictures` matches and as many mismatches.

    Args:
        which: what `chosen` are, with `{}` for `8 tokens`.
        strict: see `load_squares`.

    Raises:
        PipelineError: an image changed, or it cannot be read and `strict`.
    """
    examples = choose_examples(
        chosen,
        content.tokens,
        content.counted,
        labels=content.index.labels,
        statistics=content.statistics,
        pictures=pictures,
    )
    rows = [place.row for example in examples for place in example.occurrences]
    squares = load_squares(rows, images, content.preprocessing, strict=strict)

    def tile(place: Occurrence) -> Tile:
        label = int(content.index.labels[place.row])
        label_name = class_name(label, content.index.classes) if label >= 0 else ""
        picture = draw_tile(squares.get(place.row), place, content.grid)
        return Tile(picture, label_name, content.index.name(place.row))

    panels = [_panel(content, example, [tile(place) for place in example.occurrences]) for example in examples]
    return CodebookSection(_introduction(content, chosen, which), panels)


def _panel(content: BuildContent, example: TokenExamples, tiles: Sequence[Tile]) -> TokenPanel:
    statistics, token = content.statistics, example.token
    patches, matching = int(statistics.patches[token]), int(statistics.matches[token])
    title, detail = f"Token {token}", f"occurs in none of the {counted(statistics.images_counted, 'image')}"
    if patches:
        held = share(statistics.images[token] / statistics.images_counted)
        detail = f"{counted(patches, 'patch', 'patches')}, in {held} of the images"
    if not content.counted.labelled or not patches:
        colour = outline_colour(None)
        return TokenPanel(token, title, detail, [TileGroup("Images that hold it", colour, tiles)] if tiles else [])
    majority = class_name(int(statistics.majority[token]), content.index.classes)
    shown = [place.matches for place in example.occurrences]
    groups = []
    for matches, number, where in (
        (True, matching, f"in images of {majority}"),
        (False, patches - matching, "in images of other classes"),
    ):
        of_group = [tile for tile, its in zip(tiles, shown, strict=True) if its is matches]
        title_of_group = f"{counted(number, 'patch', 'patches')} {where}"
        groups.append(TileGroup(title_of_group, outline_colour(matches), of_group))
    return TokenPanel(token, f"{title}: {majority}", f"purity {share(matching / patches)}, {detail}", groups)


def _introduction(content: BuildContent, chosen: Sequence[int], which: str) -> tuple[str, ...]:
    rows, columns = content.grid
    reading = (
        f"Shown: {which.format(counted(len(chosen), 'token', 'tokens'))}. Every picture is a different image, cut as "
        f"the tokenizer sees it, with one of its {rows} × {columns} patches outlined: one that has the token. "  # noqa: RUF001
        "A good token shows the same thing in every outline."
    )
    counts = content.statistics
    if not content.counted.labelled:
        return (reading, f"{_counted_images(content, 'image')}.")
    reading += (
        " Beside the token stands its majority class, the one in whose images most of its patches lie, and its purity, "
        "the share of its patches that do. Green outlines are in images of that class, red ones in images of others."
    )
    numbers = (
        f"{_counted_images(content, 'labelled image')}. Of all patches {share(counts.overall_purity)} lie in an image "
        "of their token's majority class; with tokens that have nothing to do with the classes it would be about "
        f"{share(content.largest_class_share)}."
    )
    return reading, numbers


def _counted_images(content: BuildContent, what: str) -> str:
    number = content.statistics.images_counted
    return f"Counted {'is' if number == 1 else 'are'} the {counted(number, what)} of the split {content.counted.split}"
