"""The paper's Tables 1-7 beside ours (`paper_tables`).

The first seven tables hold every number of the paper, each in its place, and beside it what we measured under the same
circumstances. What was measured under others, the demo's first of all, gets tables of the same layout of its own,
which hold no number of the paper. What the paper has no place for is listed (`further_results`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from pipeline.paper.layouts import LAYOUTS, Column, Layout, RowKey
from pipeline.paper.results import PaperResult, paper_results
from pipeline.stages.report.our_results import Comparison, OurResult, compared

_Key = TypeVar("_Key", RowKey, Column)


@dataclass(frozen=True)
class Cell:
    """The paper's number, if it has one here, and ours: none, one, or several from different presets."""

    paper: PaperResult | None
    ours: tuple[Comparison, ...]


@dataclass(frozen=True)
class Row:
    """What the first cells say, and the cells of the numbers, one per column."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper with ours beside it, or ours alone.

    Attributes:
        data: that its numbers were measured on; where ours do not compare with the paper's, the circumstances too.
        groups: the rows, between the paper's rules.
        is_papers: whether the paper's numbers are in it; if not, none of ours in it compares with them.
        states_backbone: whether a heading or a row says which backbone a number belongs to.
    """

    number: int
    title: str
    data: str
    note: str
    row_heads: tuple[str, ...]
    columns: tuple[Column, ...]
    groups: tuple[tuple[Row, ...], ...]
    is_papers: bool
    states_backbone: bool

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for group in self.groups for row in group)

    @property
    def filled(self) -> tuple[bool, ...]:
        """Which columns have something of ours."""
        return tuple(any(row.cells[place].ours for row in self.rows) for place in range(len(self.columns)))

    @property
    def has_ours(self) -> bool:
        return any(self.filled)

    @property
    def headings(self) -> tuple[tuple[str, int], ...]:
        """The headings over the columns, and how many columns each spans."""
        return tuple((over, len(list(below))) for over, below in groupby(self.columns, lambda column: column.over))


def paper_tables(ours: Sequence[OurResult]) -> tuple[PaperTable, ...]:
    """Return tables 1-7, then for each other circumstance the tables that have something to show; the same result given
    twice counts once."""
    distinct = tuple(dict.fromkeys(ours))
    tables = [_table(layout, [result for result in distinct if not result.circumstances]) for layout in LAYOUTS]
    for circumstances in dict.fromkeys(result.circumstances for result in distinct if result.circumstances):
        results = [result for result in distinct if result.circumstances == circumstances]
        tables += [_table(layout, results, circumstances) for layout in LAYOUTS if layout.for_others]
    return tuple(table for table in tables if table.groups)


def further_results(ours: Sequence[OurResult], tables: Sequence[PaperTable]) -> tuple[Comparison, ...]:
    """Return the results that no cell of the tables shows; those that differ in their seeds only are one."""
    cells = [cell for table in tables for row in table.rows for cell in row.cells]
    shown = {result for cell in cells for comparison in cell.ours for result in comparison.results}
    alike: dict[object, list[OurResult]] = {}
    for result in dict.fromkeys(ours):
        if result not in shown:
            alike.setdefault((result.setting, result.data, result.pretraining_data), []).append(result)
    return tuple(comparison for results in alike.values() for comparison in compared(results))


def _table(layout: Layout, ours: Sequence[OurResult], circumstances: str = "") -> PaperTable:
    paper = {_place(layout, result): result for result in paper_results() if result.table == layout.number}
    placed: dict[tuple[RowKey, Column], list[OurResult]] = {}
    for result in ours:
        rows_of_it = layout.rows(result.setting)
        for row in rows_of_it[:1] if circumstances else rows_of_it:  # only the paper's own table repeats a row
            placed.setdefault((row, layout.column(result.setting)), []).append(result)
    rows = list(dict.fromkeys(row for row, _ in paper))
    columns = _arranged(dict.fromkeys(column for _, column in paper), ())
    if circumstances:  # only what ours fill, and no number of the paper
        rows = _arranged(dict.fromkeys(row for row, _ in placed), rows)
        columns = _arranged(dict.fromkeys(column for _, column in placed), columns)
        paper = {}
    groups: dict[str, list[Row]] = {row.group: [] for row in rows}
    for row in rows:
        cells = (
            _cell(paper.get((row, column)), placed.get((row, column), ()), layout.states_backbone) for column in columns
        )
        groups[row.group].append(Row(row.labels, tuple(cells)))
    return PaperTable(
        number=layout.number,
        title=layout.title,
        data=circumstances or layout.data,
        note="" if circumstances else layout.note,
        row_heads=layout.row_heads,
        columns=tuple(columns),
        groups=tuple(tuple(group) for group in groups.values()),
        is_papers=not circumstances,
        states_backbone=layout.states_backbone,
    )


def _place(layout: Layout, result: PaperResult) -> tuple[RowKey, Column]:
    (row,) = layout.rows(result.setting)
    return row, layout.column(result.setting)


def _cell(paper: PaperResult | None, ours: Sequence[OurResult], is_comparable: bool) -> Cell:
    return Cell(paper, compared(ours, paper.value if paper and is_comparable else None))


def _arranged(keys: Iterable[_Key], paper: Sequence[_Key]) -> list[_Key]:
    """Sort by what comes first (the group of a row, the heading over a column), then by what follows (the first label,
    the column's own heading), each in the paper's order as far as it goes."""
    found: list[_Key] = list(keys)
    leading = [_group_of(key) for key in (*paper, *found)]
    following = [_label_of(key) for key in (*paper, *found)]
    return sorted(found, key=lambda key: (leading.index(_group_of(key)), following.index(_label_of(key))))


def _group_of(key: RowKey | Column) -> str:
    return key[0]


def _label_of(key: RowKey | Column) -> str:
    return key.labels[0] if isinstance(key, RowKey) else key.name
