"""The curves of all pre-trainings of a report in one figure."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from models.objectives.colours import objective_colour
from pipeline.stages.report.figures import LIGHT, Palette, two_panels, whole_numbers
from pipeline.stages.report.pretrainings import Pretraining

_PANELS = (("token_loss", "token loss (nats)"), ("token_accuracy", "token accuracy"))
_COLUMNS, _ROW_HEIGHT, _TALLER = 6, 0.24, 0.5  # inches; four families of curves need more room than two lines


@dataclass(frozen=True)
class BlindGuess:
    """What is reached at a tokenizer's tokens without looking at the image: the entropy of the token
    frequencies as loss, in nats, by always predicting these; the share of the most frequent token as accuracy, by
    always naming it."""

    tokenizer: str
    token_loss: float
    token_accuracy: float


def curves_figure(
    pretrainings: Sequence[Pretraining], guesses: Sequence[BlindGuess], palette: Palette = LIGHT
) -> Figure:
    """Draw token loss (left) and token accuracy (right) over epochs: a colour per objective, paler for the further ones
    of the same objective; validation drawn through, training dashed, the blind guess at each tokenizer's tokens
    dotted."""
    figure, panels = two_panels(palette, (_PANELS[0][1], _PANELS[1][1]))
    for axes, (quantity, _) in zip(panels, _PANELS, strict=True):
        for pretraining in pretrainings:
            colour = curve_colour(pretraining, palette)
            training, validation = pretraining.curve(quantity), pretraining.curve(f"val_{quantity}")
            # Without a validation the training is all there is to see, so it gets the full width.
            width = 1.1 if validation.values else 1.8
            axes.plot(training.epochs, training.values, linestyle=(0, (4, 2)), linewidth=width, color=colour)
            axes.plot(validation.epochs, validation.values, linewidth=1.8, marker="o", markersize=3, color=colour)
        for guess in guesses:
            axes.axhline(getattr(guess, quantity), linestyle=":", linewidth=1.4, color=palette.ink)
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        if axes.get_xlim()[1] > 1:  # of a training in steps, less than one may be all there is
            axes.xaxis.set_major_locator(whole_numbers())
    panels[1].set_ylim(bottom=0)
    panels[1].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _add_legend(figure, pretrainings, palette)
    return figure


def curve_colour(pretraining: Pretraining, palette: Palette = LIGHT) -> str:
    """Return the colour of its objective; the second, third, ... with one objective fade towards the paper, but stay
    visible."""
    full = objective_colour(pretraining.objective, dark=palette is not LIGHT)
    keep = max(0.4, 1 - 0.25 * pretraining.variant)
    mixed = (keep * part + (1 - keep) * paper for part, paper in zip(to_rgb(full), to_rgb(palette.paper), strict=True))
    return to_hex(tuple(mixed))  # type: ignore[arg-type]


def _add_legend(figure: Figure, pretrainings: Sequence[Pretraining], palette: Palette) -> None:
    """Add the legend below both panels, where it covers no curve."""
    entries = [Line2D([], [], color=curve_colour(one, palette), linewidth=3, label=one.label) for one in pretrainings]
    if any(one.curve("val_token_loss").values for one in pretrainings):
        entries.append(Line2D([], [], color=palette.ink, linewidth=1.8, marker="o", markersize=3, label="validation"))
    entries += [
        Line2D([], [], color=palette.ink, linewidth=1.1, linestyle=(0, (4, 2)), label="training"),
        Line2D([], [], color=palette.ink, linewidth=1.4, linestyle=":", label="blind guess"),
    ]
    longest = max(len(str(entry.get_label())) for entry in entries)
    columns = min(len(entries), _COLUMNS if longest <= 12 else 4 if longest <= 20 else 3)
    rows = -(-len(entries) // columns)
    figure.set_figheight(figure.get_figheight() + _TALLER + _ROW_HEIGHT * rows)
    figure.legend(
        handles=entries, loc="outside lower center", ncols=columns, fontsize=9, labelcolor=palette.ink, frameon=False
    )
