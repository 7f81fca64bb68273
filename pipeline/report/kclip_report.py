"""Stage `report`: one HTML page and one Markdown page about a k-CLIP build, from its artifacts.

The artifacts' digests are its inputs, so the same content is reported once. What depends on the run that made the
content (seconds, images per second) is that run's, as its artifact tells.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from models.preprocessing import Preprocessing
from pipeline.data.image_batches import DecodingOptions, ImageSet
from pipeline.data.sources import open_source
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.errors import PipelineError
from pipeline.fingerprint import recipe
from pipeline.report import build_facts, figures
from pipeline.report import codebook_pictures as pictures
from pipeline.report.codebook_pictures import TokenExamples
from pipeline.report.page import BadImage, Page, PageFigure, TokenRow, render_html, render_markdown
from pipeline.tracker import TrackedRun
from pipeline.workspace import StageResult, Workspace
from storage.artifact import Artifact, Built
from storage.codebook_file import Codebook, read_codebook
from storage.image_index import ImageIndex, ImageStatus
from storage.image_records import bad_images, read_image_records
from storage.token_store import TokenStore

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
    content = _Content(stages, source, decoding)

    def build(folder: Path, run: TrackedRun) -> Built:
        files, page = _draw(content, artifacts, workspace.settings.layout.root)
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


@dataclass(frozen=True)
class _Content:
    """What the page reads of the artifacts, each thing once."""

    stages: dict[str, Artifact]
    source: ImageSourceOptions
    decoding: DecodingOptions

    @cached_property
    def index(self) -> ImageIndex:
        return ImageIndex.read(self.stages["index_images"].path)

    @cached_property
    def codebook(self) -> Codebook:
        return read_codebook(self.stages["fit_codebook"].path)

    @cached_property
    def store(self) -> TokenStore:
        return TokenStore(self.stages["tokenize_images"].path)

    @cached_property
    def counts(self) -> np.ndarray:
        """Occurrences of each token, int64 [K]."""
        return np.load(self.store.path / "counts.npy", allow_pickle=False)

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.store.attributes["grid"]
        return rows, columns

    @property
    def preprocessing(self) -> Preprocessing:
        encoder = self.store.attributes["encoder"]
        return Preprocessing(
            encoder["image_size"], tuple(encoder["mean"]), tuple(encoder["std"]), encoder["interpolation"]
        )

    @cached_property
    def examples(self) -> tuple[TokenExamples, ...]:
        return pictures.choose_examples(
            self.store.load(), labels=self.index.labels, image_ids=self.index.image_ids, counts=self.counts
        )

    @cached_property
    def bad_images(self) -> list[BadImage]:
        return [
            BadImage(self.index.name(item["row"]), _kind(item["status"]), item["reason"])
            for item in bad_images(read_image_records(self.store.path)).to_pylist()
        ]

    @cached_property
    def bad_kinds(self) -> dict[str, int]:
        """Bad images per kind, most frequent first."""
        return dict(Counter(image.kind for image in self.bad_images).most_common())


def _draw(content: _Content, artifacts: tuple[Artifact, ...], data_root: Path) -> tuple[dict[str, bytes], Page]:
    """The PNG files, and the page that shows them."""
    images = ImageSet(content.index, open_source(content.source), content.decoding)
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
        key_figures=build_facts.key_figures(
            *(content.stages[name] for name in ("tokenize_images", "extract_features", "index_images")), content.grid
        ),
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


def _figures(content: _Content) -> list[PageFigure]:
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
            "4,095; 0 is unused): one narrow hill is an even vocabulary, a long left tail means tokens spent on outliers.",
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


def _data_set(stages: dict[str, Artifact]) -> str:
    if "make_demo_images" in stages:
        return "the embedded demo"
    return Path(stages["index_images"].notes.get("source", "")).expanduser().name or "a data set"


def _introduction(content: _Content) -> str:
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
            " Green: the image is of the class of most images with this token; red: of another; yellow: no label. "
            "Of each range of frequencies the token whose images agree most on a class is shown, so these rows are the "
            "vocabulary's good side."
        )
    return text


def _label(example: TokenExamples, classes: tuple[str, ...]) -> tuple[str, str]:
    """Title and detail, two lines."""
    detail = f"{example.patches:,} patches, {example.images:,} images"
    if example.majority < 0:
        return f"Token {example.token:,}", detail
    name = classes[example.majority] if example.majority < len(classes) else f"class {example.majority}"
    return f"Token {example.token:,}: {name}", f"{build_facts.share(example.share)} of its images\n{detail}"


def _kind(status: int) -> str:
    return ImageStatus(status).name.lower().replace("_", " ")


def _encoded(image: Image.Image, kind: str) -> bytes:
    """PNG, or JPEG without thinned-out colour, which would blur the outlines."""
    buffer = BytesIO()
    image.save(buffer, kind, **({"quality": 90, "subsampling": 0} if kind == "JPEG" else {}))
    return buffer.getvalue()
