"""The page of a report: what is on it (`Page`), and how it becomes one HTML file or one Markdown file.

The HTML file holds its pictures as data addresses and asks for nothing from outside, no script either; a policy in its
head says so to the browser. The Markdown file refers to the PNG files beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.stages.report.codebook_section import CodebookSection
from pipeline.stages.report.page_parts import ABSENT, BadImage, KeyFigure, PageFigure, PretrainingSection, StageRow
from pipeline.stages.report.page_templates import page_environment
from pipeline.stages.report.paper_section import PaperSection
from pipeline.stages.report.tokenizers_section import TokenizersSection


@dataclass(frozen=True)
class Page:
    """Everything that the templates show; texts are plain, escaping is theirs."""

    title: str
    introduction: str
    demo_notes: Sequence[str]
    key_figures: Sequence[KeyFigure]
    pretraining: PretrainingSection | None
    paper: PaperSection | None
    tokenizers: TokenizersSection | None
    stages: Sequence[StageRow]
    total_cost: str
    figures: Sequence[PageFigure]
    codebook: CodebookSection
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
