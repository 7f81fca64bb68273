"""Our results as bars with their intervals: a panel for each protocol and data set, a bar for each method."""

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.objectives.colours import colour_by_title
from pipeline.paper.results import CLASSIFIER, SCRATCH, Setting
from pipeline.stages.report.figures import LIGHT, Palette, blank_figure, light_and_dark, styled
from pipeline.stages.report.metrics import is_main, metric_title
from pipeline.stages.report.our_results import Comparison, OurResult, compared
from pipeline.stages.report.page_parts import PageFigure

ACCURACIES = "accuracies.png"
_TITLE = 36  # characters beside each other over half the width
_BAR, _PANEL = 0.3, 1.05  # inches: a bar with its gap, and a panel's title, ticks and margins


def accuracy_picture(ours: Sequence[OurResult]) -> PageFigure:
    """Return `accuracy_bars` for a light and a dark page, with its caption."""
    return PageFigure(
        ACCURACIES,
        "What was measured",
        "In percent. A thin line is the 95 % bootstrap interval; where several seeds are behind a bar, which then is "
        "their mean, it goes from the lowest bound to the highest. Bars whose lines overlap may differ by chance. Each "
        "panel has data and a protocol of its own: bars of different panels do not compare.",
        *light_and_dark(lambda palette: accuracy_bars(ours, palette)),
    )


def accuracy_bars(ours: Sequence[OurResult], palette: Palette = LIGHT) -> Figure:
    """Draw a panel per protocol and data set, of its main score; the bar of training from random weights is hollow."""
    main = [result for result in ours if is_main(result.metric)]
    panels = list(_panels(main or ours).items())
    columns = min(len(panels), 2)
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    slots = [max(len(comparisons) for _, comparisons in row) for row in rows]
    heights = [_PANEL + _BAR * most for most in slots]
    figure = blank_figure(palette, height=sum(heights))
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for place, (title, comparisons) in enumerate(panels):
        axes = styled(figure.add_subplot(grid[place // columns, place % columns]), palette)
        lines = [part for line in title.splitlines() for part in wrap(line, _TITLE)]
        axes.set_title("\n".join(lines), color=palette.ink, fontsize=10, loc="left")
        _draw(axes, comparisons, slots[place // columns], palette)
    return figure


def _panels(ours: Sequence[OurResult]) -> dict[str, list[Comparison]]:
    """Return the bars of each panel by its title, one for results that differ in their seeds only; the baseline comes
    last."""
    settings: dict[str, dict[Setting, list[OurResult]]] = {}
    for result in sorted(dict.fromkeys(ours), key=lambda result: result.setting.method == SCRATCH):
        title = f"{_protocol(result)} (%)\n{result.circumstances or result.data}"
        settings.setdefault(title, {}).setdefault(result.setting, []).append(result)
    return {
        title: [comparison for alike in results.values() for comparison in compared(alike)]
        for title, results in settings.items()
    }


def _protocol(result: OurResult) -> str:
    data = result.metric.partition("[")[2].rstrip("]")
    return metric_title(result.metric) + (f", {data}" if data not in ("", result.data) else "")


def _draw(axes: Axes, comparisons: Sequence[Comparison], slots: int, palette: Palette) -> None:
    """Draw bars from the top down, as thick as those of the neighbour with `slots` of them."""
    positions = slots - 1 - np.arange(len(comparisons))
    for place, comparison in zip(positions.tolist(), comparisons, strict=True):
        text: dict[str, Any] = {"va": "center", "fontsize": 9, "color": palette.ink, "textcoords": "offset points"}
        if (value := comparison.value) is None:
            axes.annotate("no number", (0, place), (5, 0), **text)
            continue
        low, high = comparison.interval or (value, value)
        method = comparison.results[0].setting.method
        colour = colour_by_title(method, dark=palette is not LIGHT)
        fill, edge = ("none", palette.ink) if method == SCRATCH else (colour, colour)
        axes.barh(place, value, height=0.62, color=fill, edgecolor=edge, linewidth=1.2)
        if comparison.interval:
            error = [[value - low], [high - value]]
            axes.errorbar(value, place, xerr=error, color=palette.ink, capsize=3, linewidth=1.2)
        axes.annotate(f"{value:.1f}", (high, place), (5, 0), **text)
    axes.set_yticks(positions, _labels(comparisons))
    axes.set_ylim(-0.6, slots - 0.4)
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=palette.lines, linewidth=0.7)


def _labels(comparisons: Sequence[Comparison]) -> list[str]:
    """Name each bar by its method, and by whatever else is not the same for all bars of the panel."""
    lengths = {comparison.results[0].length for comparison in comparisons if comparison.results[0].length.record}
    facts = [_facts(comparison, names_length=len(lengths) > 1) for comparison in comparisons]
    differing = [len(set(column)) > 1 for column in zip(*facts, strict=True)]
    differing[0] |= facts[0][0] != CLASSIFIER  # which is in the panel's title
    return [
        ", ".join(fact for fact, shown in zip(each, differing, strict=True) if shown and fact) or each[0]
        for each in facts
    ]


def _facts(comparison: Comparison, *, names_length: bool) -> tuple[str, ...]:
    result = comparison.results[0]
    tokenizer = "" if result.tokenizer == "none" else result.tokenizer
    cut = "" if result.cutting_point is None else f"c = {result.cutting_point}"
    method = CLASSIFIER if result.setting.method == CLASSIFIER else result.method
    length = result.length.words if result.length.record and names_length else ""
    return method, tokenizer, result.backbone, cut, length, comparison.preset
