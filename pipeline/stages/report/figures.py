"""The figures of a build's report, and what all figures have in common.

Each function returns a new Figure; there is no global state of matplotlib.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from models.kmeans.statistics import histogram_of_sizes

_SIZE, _DPI = (8.4, 3.2), 160


@dataclass(frozen=True)
class Palette:
    """Colours of a figure, for a light or a dark page."""

    paper: str
    ink: str
    lines: str
    first: str
    second: str
    bad: str


LIGHT = Palette(paper="#ffffff", ink="#24292f", lines="#d5d9de", first="#2f6fbf", second="#c2571a", bad="#c62f3b")
DARK = Palette(paper="#191d23", ink="#d7dce2", lines="#3a414b", first="#74aef2", second="#f0955a", bad="#f27882")


def iterations_figure(history: Sequence[Mapping[str, Any]], vocabulary: int, palette: Palette = LIGHT) -> Figure:
    """Draw inertia (left), perplexity and used share of the vocabulary (right) over the iterations of each restart.

    `history` has the fields of `KMeansIteration`; what a mode does not measure (NaN) is said to be missing.
    """
    figure, (left, right) = two_panels(palette, ("inertia (sum of squared distances)", "share of the vocabulary"))
    restarts = sorted({item["restart"] for item in history})
    for restart in restarts:
        items = [item for item in history if item["restart"] == restart]
        steps = [item["iteration"] for item in items]
        fade = 1.0 if restart == restarts[-1] else 0.4
        for axes, name, scale, colour, label in (
            (left, "inertia", 1, palette.first, "inertia"),
            (right, "perplexity", vocabulary, palette.first, f"perplexity / {vocabulary:,}"),
            (right, "used_share", 1, palette.second, "used tokens"),
        ):
            values = np.array([item[name] for item in items], float) / scale
            if np.isfinite(values).any():
                label = label if restart == restarts[-1] else "_earlier restart"
                axes.plot(steps, values, marker="o", markersize=3, color=colour, alpha=fade, label=label)
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"))
    right.set_ylim(0, 1.05)
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (left, right):
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(whole_numbers())
    if right.lines:
        add_legend(right, palette)
    else:
        say(right, "not measured in this k-means mode", palette)
    return figure


def sizes_figure(sample: np.ndarray | None, tokens: np.ndarray, palette: Palette = LIGHT) -> Figure:
    """Draw how many tokens have how many patches: of the vectors that were clustered [K], if any were, and of all
    images [K]."""
    drawn = [("all tokens", tokens, palette.second)]
    if sample is not None:
        drawn.insert(0, ("clustered sample", sample, palette.first))
    figure, panels = titled_panels(palette, [title for title, _, _ in drawn])
    for axes, (_, sizes, colour) in zip(panels, drawn, strict=True):
        edges, counts = histogram_of_sizes(sizes)
        axes.bar(np.arange(len(counts)), counts, width=0.92, color=colour)
        axes.set_xticks(np.arange(len(counts)), _bin_labels(edges), rotation=45 if len(counts) > 6 else 0)
        axes.set_xlim(np.flatnonzero(counts)[0] - 0.6, len(counts) - 0.4)  # the bins below are empty
        axes.set_xlabel("patches of a token")
        axes.yaxis.set_major_locator(whole_numbers())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panels[0].set_ylabel("number of tokens")
    return figure


def bad_images_figure(bad: Mapping[str, int], palette: Palette = LIGHT) -> Figure:
    """Draw bad images by what is wrong with them."""
    figure = blank_figure(palette, height=0.8 + 0.4 * len(bad))
    axes = styled(figure.add_subplot(), palette)
    positions = np.arange(len(bad))[::-1]
    bars = axes.barh(positions, list(bad.values()), height=0.6, color=palette.bad)
    axes.bar_label(bars, labels=[f"{count:,}" for count in bad.values()], padding=4, color=palette.ink)
    axes.set_yticks(positions, list(bad))
    axes.xaxis.set_major_locator(whole_numbers())
    axes.margins(x=0.1)
    axes.set_xlabel("images")
    return figure


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file, the same bytes for the same figure."""
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": ""})
    return buffer.getvalue()


def light_and_dark(draw: Callable[[Palette], Figure]) -> tuple[bytes, bytes]:
    """Return PNG files of what `draw` returns for a light page and for a dark one."""
    return png(draw(LIGHT)), png(draw(DARK))


def two_panels(palette: Palette, titles: tuple[str, str]) -> tuple[Figure, tuple[Axes, Axes]]:
    """Return a figure with two empty axes side by side."""
    figure, (left, right) = titled_panels(palette, titles)
    return figure, (left, right)


def titled_panels(palette: Palette, titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure with empty axes side by side."""
    figure = blank_figure(palette)
    panels = [styled(figure.add_subplot(1, len(titles), place), palette) for place in range(1, len(titles) + 1)]
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, color=palette.ink, fontsize=10, loc="left")
    return figure, panels


def whole_numbers() -> MaxNLocator:
    """Return ticks at whole numbers only."""
    return MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])


def _bin_labels(edges: np.ndarray) -> list[str]:
    labels = []
    for low, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        labels.append(_short(low) if stop - low == 1 else f"{_short(low)}+")
    return labels


def _short(number: int) -> str:
    for power, letter in ((1 << 20, "M"), (1 << 10, "k")):
        if number >= power:
            return f"{number // power}{letter}"
    return str(number)


def blank_figure(palette: Palette, height: float = _SIZE[1]) -> Figure:
    return Figure(figsize=(_SIZE[0], height), dpi=_DPI, layout="constrained", facecolor=palette.paper)


def styled(axes: Axes, palette: Palette) -> Axes:
    axes.set_facecolor(palette.paper)
    axes.tick_params(colors=palette.ink, labelsize=9)
    axes.xaxis.label.set_color(palette.ink)
    axes.yaxis.label.set_color(palette.ink)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(palette.lines)
    axes.grid(axis="y", color=palette.lines, linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def add_legend(axes: Axes, palette: Palette, *, loc: Literal["lower right", "best"] = "lower right") -> None:
    """Add a legend, by default where rising curves leave room."""
    axes.legend(loc=loc, fontsize=9, labelcolor=palette.ink, facecolor=palette.paper, edgecolor=palette.lines)


def say(axes: Axes, text: str, palette: Palette) -> None:
    """Write a text where curves would be."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=palette.ink)
