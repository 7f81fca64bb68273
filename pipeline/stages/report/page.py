"""The page of a report: what is on it (`Page`), and how it becomes one HTML file or one Markdown file.

The HTML file holds its pictures as data addresses and asks for nothing from outside, no script either; a policy in its
head says so to the browser. The Markdown file refers to the PNG files beside it.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from pipeline.engine.words import counted

if TYPE_CHECKING:
    from pipeline.stages.report.codebook_section import CodebookSection
    from pipeline.stages.report.paper_section import PaperSection
    from pipeline.stages.report.tokenizers_section import TokenizersSection

ABSENT = "–"  # noqa: RUF001 - the dash of an empty cell
_TEMPLATES = Path(__file__).parent / "templates"
_MARKDOWN_SYNTAX = re.compile(r"([\\`*_{}\[\]<>|])")


@dataclass(frozen=True)
class KeyFigure:
    """One number that sums up the build: its name, the number, and what it relates to."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class StageRow:
    """A line of the table of stages, ready to print."""

    stage: str
    made: str
    size: str
    seconds: str
    images_per_second: str
    data_wait: str
    device: str
    energy: str
    fingerprint: str
    tracking_run: str


@dataclass(frozen=True)
class PageFigure:
    """A figure: the PNG file beside the page, its bytes for a light and a dark page, and how to read it."""

    file: str
    title: str
    caption: str
    light: bytes
    dark: bytes


@dataclass(frozen=True)
class PretrainingRow:
    """A line of the table of pre-trainings, ready to print."""

    label: str
    backbone: str
    targets: str
    targets_share: str
    seed: str
    training: Sequence[str]  # how long it was: in epochs if it was given so, and in steps
    loss: str
    val_loss: str
    val_accuracy: str
    images_per_second: str
    seconds: str
    fingerprint: str
    tracking_run: str


@dataclass(frozen=True)
class PretrainingSection:
    """The pre-trainings of a report, side by side.

    Attributes:
        cautions: paragraphs on what follows from the numbers, and what does not.
        labels: of the pre-trainings, in the order of `rows`.
        differing_options: option -> its value for each of them; options that all share are not here.
    """

    figure: PageFigure
    rows: Sequence[PretrainingRow]
    speed: str
    cautions: Sequence[str]
    labels: Sequence[str]
    differing_options: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class BadImage:
    """An image without tokens, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Page:
    """Everything that the templates show; texts are plain, escaping is theirs."""

    title: str
    introduction: str
    demo_notes: Sequence[str]
    key_figures: Sequence[KeyFigure]
    pretraining: PretrainingSection | None
    paper: "PaperSection | None"
    tokenizers: "TokenizersSection | None"
    stages: Sequence[StageRow]
    total_cost: str
    figures: Sequence[PageFigure]
    codebook: "CodebookSection"
    shown_tokens: str  # what `codebook` shows: "tokens", of several tokenizers "k-CLIP tokens"
    bad_kinds: Mapping[str, int]
    bad_images: Sequence[BadImage]
    options: Mapping[str, Mapping[str, str]]  # stage -> option -> value
    machine: Mapping[str, str]

    @property
    def is_tracked(self) -> bool:
        return any(row.tracking_run for row in self.stages)

    @property
    def has_energy(self) -> bool:
        return any(row.energy != ABSENT for row in self.stages)


def render_html(page: Page) -> str:
    return page_environment().get_template("build_report.html").render(page=page)


def render_markdown(page: Page) -> str:
    return page_environment().get_template("build_report.md").render(page=page)


def escape_markdown(text: object) -> str:
    """Text that shows as it is, in a table's cell too: file names hold underscores, reasons hold `<` and `|`."""
    return _MARKDOWN_SYNTAX.sub(r"\\\1", " ".join(str(text).split()))


def data_address(picture: bytes, kind: str) -> str:
    """A picture as an address that holds it, `data:image/<kind>;base64,...`."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


@lru_cache(maxsize=1)
def page_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    numbers = {"thousands": lambda count: f"{count:,}", "counted": counted}
    environment.filters |= {"md": escape_markdown, "data": data_address, **numbers}
    return environment
