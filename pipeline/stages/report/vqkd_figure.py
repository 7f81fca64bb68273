"""How the training of a VQ-KD went."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from pipeline.stages.records import VQKDRecord
from pipeline.stages.report.figures import LIGHT, Palette, add_legend, say, two_panels, whole_numbers

_DASHED = (0, (4, 2))
_Values = Mapping[str, Any]


def vqkd_figure(
    history: Sequence[_Values], vocabulary: int, fitted: VQKDRecord | None = None, palette: Palette = LIGHT
) -> Figure:
    """Draw the cosine to the teacher (left), perplexity and used share of the vocabulary (right) over steps.

    Args:
        history: lines with `step` and any of `cosine`, `val_cosine`, `perplexity`, `used_share`; what was never
            measured is said to be missing.
        fitted: whose `perplexity` and `used_share`, of the tokens that the images get when it is over, are drawn as
            diamonds.
    """
    figure, (left, right) = two_panels(palette, ("cosine to the teacher", "share of the vocabulary"))
    validated = _draw(left, history, "val_cosine", palette.first, "validation", marker="o", markersize=3)
    # Without a validation the training is all there is to see, so it gets the full width.
    style: dict[str, Any] = {"linestyle": _DASHED, "linewidth": 1.1} if validated else {}
    _draw(left, history, "cosine", palette.first, "training", **style)
    end = {"perplexity": fitted.perplexity, "used_share": fitted.used_share} if fitted else {}
    last = [{"step": line["step"], **end} for line in history[-1:]]
    for quantity, scale, colour, label in (
        ("perplexity", vocabulary, palette.first, f"perplexity / {vocabulary:,}"),
        ("used_share", 1, palette.second, "used tokens"),
    ):
        _draw(right, history, quantity, colour, label, scale=scale)
        drawn = _draw(right, last, quantity, colour, f"_{label}", scale=scale, marker="D", clip_on=False)
    if drawn:
        right.plot([], [], linestyle="", marker="D", color=palette.ink, label="in the end")
    right.set_ylim(0, 1.05)
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (left, right):
        _finish(axes, palette)
    return figure


def _draw(
    axes: Axes, history: Sequence[_Values], quantity: str, colour: str, label: str, *, scale: float = 1, **style: Any
) -> bool:
    """Draw one curve; return whether there was anything to draw."""
    points = [(line["step"], line[quantity] / scale) for line in history if line.get(quantity) is not None]
    points = [(step, value) for step, value in points if np.isfinite(value)]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, label=label, **{"linewidth": 1.6, **style})
    return bool(points)


def _finish(axes: Axes, palette: Palette) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(whole_numbers())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if axes.lines:
        axes.set_xlim(left=0)
        add_legend(axes, palette, loc="best")
    else:
        say(axes, "not measured", palette)
