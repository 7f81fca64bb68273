"""Stage `report`: one HTML page and one Markdown page about a k-CLIP build, from its artifacts.

The artifacts' digests are its inputs, so the same content is reported once. What depends on the run that made the
content (seconds, images per second) is that run's, as its artifact tells.
"""

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from pipeline.data.image_batches import DecodingOptions, ImageSet
from pipeline.data.sources import open_source
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.errors import PipelineError
from pipeline.fingerprint import recipe
from pipeline.report import build_facts, figures
from pipeline.report import codebook_pictures as pictures
from pipeline.report.build_content import BuildContent
from pipeline.report.codebook_pictures import TokenExamples
from pipeline.report.page import Page, PageFigure, TokenRow, render_html, render_markdown
from pipeline.tracker import TrackedRun
from pipeline.workspace import StageResult, Workspace
from storage.artifact import Artifact, Built

STAGE = "report"
VERSION = 1
HTML, MARKDOWN, CODEBOOK = "report.html", "report.md", "codebook.png"
_LISTED_BAD_IMAGES = 20
_NEEDED = ("index_images", "extract_features", "fit_codebook", "tokenize_images")


def report(
    artifacts: tuple[Artifact, ...], *, source: ImageSourceOptions, decoding: DecodingOptions, workspace: Workspace
) -> StageResult:
    """Write report.html (whole in one file), report.md and the PNG files that it shows.

    Args:
        artifacts: those of one build, one per stage; the stages of the demo only if it is one.
        source: where the images lie, for the pictures of the codebook.

    Raises:
        PipelineError: a stage's artifact is missing among `artifacts`, or the images are gone.
        StoreInvalid: the token store or the codebook breaks its format.
    """
    stages = {artifact.stage: artifact for artifact in artifacts}
    if missing := [stage for stage in _NEEDED if stage not in stages]:
        raise PipelineError(f"report: no artifact of {', '.join(missing)} was given; a build's report needs all stages")
    content = BuildContent(stages)

    def build(folder: Path, run: TrackedRun) -> Built:
        images = ImageSet(content.index, open_source(source), decoding)
        files, page = _draw(content, images, workspace.settings.layout.root)
        files[HTML] = render_html(page).encode()
        files[MARKDOWN] = render_markdown(page).encode()
        for name, data in files.items():
            (folder / name).write_bytes(data)
            if name != MARKDOWN:
                run.file(folder / name)
        shown = sum(len(example.places) for example in content.examples)
        return Built({"tokens_shown": len(content.examples), "patches_shown": shown}, {})

    digests = {artifact.stage: artifact.digest for artifact in artifacts}
    return workspace.artifact(recipe(STAGE, VERSION, {}, **digests), build)


def _draw(content: BuildContent, images: ImageSet, data_root: Path) -> tuple[dict[str, bytes], Page]:
    """The PNG files, and the page that shows them."""
    artifacts = list(content.stages.values())
    squares = pictures.load_squares(content.examples, images, content.preprocessing)
    strips = [pictures.draw_strip(example, squares, content.grid) for example in content.examples]
    labels = [_label(example, content.index.classes) for example in content.examples]
    drawn = _figures(content)
    picture = pictures.draw_picture(["\n".join(label) for label in labels], strips)
    files = {CODEBOOK: _encoded(picture, "PNG"), **{figure.file: figure.light for figure in drawn}}
    page = Page(
        title=f"k-CLIP tokens of {_data_set(content.stages)}",
        introduction=_introduction(content),
        demo_notes=build_facts.demo_notes(content.stages),
        key_figures=build_facts.key_figures(content.stages, content.grid),
        stages=build_facts.stage_rows(artifacts),
        figures=drawn,
        codebook_caption=_codebook_caption(content.examples),
        tokens=[
            TokenRow(title, detail, _encoded(strip, "JPEG"))
            for (title, detail), strip in zip(labels, strips, strict=True)
        ],
        strip_size=strips[0].size,
        bad_kinds=content.bad_kinds,
        bad_images=content.bad_images[:_LISTED_BAD_IMAGES],
        options=build_facts.option_tables(artifacts),
        machine=build_facts.machine_table(artifacts, data_root),
    )
    return files, page


def _figures(content: BuildContent) -> list[PageFigure]:
    def both(draw: Callable[[figures.Palette], Figure]) -> tuple[bytes, bytes]:
        return figures.png(draw(figures.LIGHT)), figures.png(draw(figures.DARK))

    history, vocabulary = content.codebook.history, content.codebook.vocabulary
    drawn = [
        PageFigure(
            "iterations.png",
            "How k-means went",
            "Left: the sum of squared distances to the nearest centroid should fall steeply, then flatten; if it still "
            "falls at the end, more iterations would help. Right: the higher both lines, the more evenly the clustered "
            "sample uses the vocabulary.",
            *both(lambda palette: figures.iterations_figure(history, vocabulary, palette)),
        ),
        PageFigure(
            "sizes.png",
            "How often tokens occur",
            "Each bar counts the tokens that occur that often, in bins that double (8+ is 8 to 15, 2k+ is 2,048 to "
            "4,095; 0 is unused): one narrow hill is an even vocabulary, a long left tail is tokens spent on outliers.",
            *both(lambda palette: figures.sizes_figure(content.codebook.sizes, content.counts, palette)),
        ),
    ]
    if content.bad_kinds:
        drawn.append(
            PageFigure(
                "bad_images.png",
                "Bad images",
                "Images that could not be decoded, by what is wrong with them; they keep their row and have no tokens.",
                *both(lambda palette: figures.bad_images_figure(content.bad_kinds, palette)),
            )
        )
    return drawn


def _data_set(stages: Mapping[str, Artifact]) -> str:
    if "make_demo_images" in stages:
        return "the embedded demo"
    return Path(stages["index_images"].notes.get("source", "")).expanduser().name or "a data set"


def _introduction(content: BuildContent) -> str:
    rows, columns = content.grid
    return (
        f"A frozen CLIP sees each image as {rows} × {columns} patches. k-means on a sample of the patch features gave "  # noqa: RUF001
        f"{content.codebook.vocabulary:,} centroids, and every patch got the id of its nearest centroid: its token. "
        "This page says what was built, how fast, how evenly the vocabulary is used, and what some tokens look like. "
        "Method: k-CLIP, from “Learning to Mask and Permute Visual Tokens for Vision Transformer Pre-Training” "
        "(Baraldi et al.). Perplexity is e^H with H the entropy of the token frequencies: that many equally frequent "
        "tokens would carry the same information."
    )


def _codebook_caption(examples: tuple[TokenExamples, ...]) -> str:
    text = (
        "Each row is a token, from frequent to rare; each picture is another image that holds it, with one such patch "
        "outlined. A good token shows the same thing in every outline."
    )
    if any(example.majority >= 0 for example in examples):
        text += (
            " Beside it stands the most frequent class of the token's images, and its share. Green: an image of that "
            "class; red: of another; yellow: without a label. Of each range of frequencies a token whose images agree "
            "on a class is shown: the vocabulary's good side."
        )
    return text


def _label(example: TokenExamples, classes: tuple[str, ...]) -> tuple[str, str]:
    """Title and two lines of detail."""
    title, images = f"Token {example.token:,}", build_facts.counted(example.images, "image", "images")
    if example.majority >= 0:
        known = example.majority < len(classes)
        title += f": {classes[example.majority] if known else f'class {example.majority}'}"
        images = f"{build_facts.share(example.share)} of {images}"
    return title, f"{images}\n{build_facts.counted(example.patches, 'patch', 'patches')}"


def _encoded(image: Image.Image, kind: str) -> bytes:
    """PNG, or JPEG without thinned-out colour, which would blur the outlines."""
    buffer = BytesIO()
    image.save(buffer, kind, **({"quality": 90, "subsampling": 0} if kind == "JPEG" else {}))
    return buffer.getvalue()
