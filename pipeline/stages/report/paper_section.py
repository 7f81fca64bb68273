"""The section of a report that puts the paper's tables beside ours: HTML, Markdown and CSV."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from urllib.parse import quote

from pipeline.paper.results import paper_results
from pipeline.stages.report.accuracy_figure import accuracy_picture
from pipeline.stages.report.best_methods import BestMethod, Difference, best_methods
from pipeline.stages.report.metrics import metric_title
from pipeline.stages.report.our_results import Comparison, OurResult
from pipeline.stages.report.page_parts import ABSENT, PageFigure
from pipeline.stages.report.page_templates import page_environment
from pipeline.stages.report.paper_tables import PaperTable, further_results, paper_tables

CSV_COLUMNS = (
    "table", "method", "tokenizer", "backbone", "metric", "paper", "ours", "difference", "low", "high", "seeds",
    "preset", "run", "data", "epochs", "cutting_point", "panel",
)  # fmt: skip
_MINUS = "\u2212"


@dataclass(frozen=True)
class RunLink:
    """The short name of an MLflow run, and its address if a browser can open it, else `""`."""

    name: str
    address: str


@dataclass(frozen=True)
class OursText:
    """A `Comparison`, ready to print: the number, the difference or `""`, and what stands below them in small."""

    value: str
    difference: str
    details: tuple[str, ...]
    runs: tuple[RunLink, ...]


@dataclass(frozen=True)
class PaperSection:
    """Everything that the templates `paper_tables.html` and `paper_tables.md` show, as `section`.

    Attributes:
        figure: our results as bars; None without any.
        best_methods: which method is best by each metric, and by how much, as far as it can be told.
        beside_paper: Tables 1-7, with the paper's numbers.
        apart: the tables of ours that do not compare, by their circumstances.
        further: ours that no table has a place for.
    """

    figure: PageFigure | None
    best_methods: tuple[BestMethod, ...]
    beside_paper: tuple[PaperTable, ...]
    apart: dict[str, tuple[PaperTable, ...]]
    further: tuple[Comparison, ...]
    absent: str = ABSENT

    @property
    def has_comparable(self) -> bool:
        return any(table.has_ours for table in self.beside_paper)

    @property
    def coverage(self) -> str:
        """How many numbers of the paper have one of ours beside them."""
        cells = [cell for table in self.beside_paper for row in table.rows for cell in row.cells]
        filled = sum(1 for cell in cells if cell.paper and cell.ours)
        if not filled:
            return (
                f"No result of ours was measured as the paper's {len(paper_results())} numbers were: they stand alone."
            )
        beside = "has ours beside it" if filled == 1 else "have ours beside them"
        return f"{filled} of the paper's {len(paper_results())} numbers {beside}."

    def metric_words(self, best: BestMethod) -> str:
        return metric_title(best.metric)

    def differences(self, best: BestMethod, *, by_chance: bool) -> str:
        return "; ".join(_difference_words(each) for each in best.behind(by_chance=by_chance)) or self.absent

    def text(self, comparison: Comparison, *, names_backbone: bool = False) -> OursText:
        return ours_text(comparison, names_backbone=names_backbone)


def paper_section(ours: Sequence[OurResult]) -> PaperSection:
    """Return the section for these results; without any, the paper's tables alone."""
    tables = paper_tables(ours)
    apart: dict[str, tuple[PaperTable, ...]] = {}
    for table in tables:
        if not table.is_papers:
            apart[table.data] = (*apart.get(table.data, ()), table)
    return PaperSection(
        figure=accuracy_picture(ours) if ours else None,
        best_methods=best_methods(ours),
        beside_paper=tuple(table for table in tables if table.is_papers),
        apart=apart,
        further=further_results(ours, tables),
    )


def render_section_html(section: PaperSection) -> str:
    """Return the part of a page; it uses the colours and the classes of the report's page."""
    return page_environment().get_template("paper_tables.html").render(section=section)


def render_section_markdown(section: PaperSection) -> str:
    return page_environment().get_template("paper_tables.md").render(section=section)


def section_csv(section: PaperSection) -> str:
    """Return one line per number of the paper and per result of ours: `CSV_COLUMNS`, percent and points; the paper's
    numbers are empty where ours do not compare, the table is empty where there is none."""
    file = StringIO(newline="")
    writer = csv.DictWriter(file, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for table in (*section.beside_paper, *(table for tables in section.apart.values() for table in tables)):
        writer.writerows(_table_lines(table))
    for comparison in section.further:
        data = comparison.results[0].circumstances or comparison.results[0].data
        writer.writerow({**_ours_fields(comparison), "data": data})
    return file.getvalue()


def ours_text(comparison: Comparison, *, names_backbone: bool = False) -> OursText:
    value, remarks = comparison.value, dict.fromkeys(result.remark for result in comparison.results)
    interval = "[{:.1f}, {:.1f}]".format(*comparison.interval) if comparison.interval else "no interval"
    verdict = {True: "within noise", False: "beyond noise", None: ""}[comparison.within_noise]
    behind = ", ".join(filter(None, (_seeds(comparison), comparison.backbone * names_backbone, comparison.preset)))
    return OursText(
        value=ABSENT if value is None else f"{value:.1f}",
        difference="" if comparison.difference is None else _points(comparison.difference),
        details=tuple(filter(None, (interval if value is not None else "no number", verdict, *remarks, behind))),
        runs=tuple(
            RunLink(result.run[:8] or "run", _address(result.link))
            for result in comparison.results
            if result.run or result.link
        ),
    )


def _difference_words(difference: Difference) -> str:
    interval = f"[{_points(difference.low)}, {_points(difference.high)}]"
    return f"{difference.name} {_points(difference.points)} {interval}"


def _seeds(comparison: Comparison) -> str:
    if comparison.seeds == 1:
        return "1 seed"
    spread = comparison.spread
    return f"mean of {comparison.seeds} seeds" + (f", {spread[0]:.1f} to {spread[1]:.1f}" if spread else "")


def _points(difference: float) -> str:
    """Return `+0.3`, a true minus sign, and no sign for what rounds to nothing."""
    text = f"{difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", _MINUS)


def _address(link: str) -> str:
    """Return a link that fits HTML and Markdown's round brackets; "" for what no browser opens as a page."""
    return quote(link, safe=":/?#[]@!$&'*+,;=%~") if link.startswith(("http://", "https://")) else ""


def _table_lines(table: PaperTable) -> Iterator[dict[str, object]]:
    for row in table.rows:
        for cell in row.cells:
            paper: dict[str, object] = {}
            if cell.paper:
                setting = cell.paper.setting
                paper = {**vars(setting), "paper": f"{cell.paper.value:.1f}"}
            for ours in [_ours_fields(each) for each in cell.ours] or ([{}] if paper else []):
                yield {"table": table.number, "data": table.data, **ours, **paper}


def _ours_fields(comparison: Comparison) -> dict[str, object]:
    low, high = comparison.interval or (None, None)
    numbers = {"ours": comparison.value, "difference": comparison.difference, "low": low, "high": high}
    return {
        **vars(comparison.results[0].setting),
        **{name: f"{number:.4f}" for name, number in numbers.items() if number is not None},
        "seeds": comparison.seeds,
        "preset": comparison.preset,
        "run": " ".join(result.run for result in comparison.results),
    }
