"""What sections and tables of a report's page are made of, ready to print; texts are plain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ABSENT = "–"  # noqa: RUF001 - the dash of an empty cell


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
    predicted: str
    predicted_share: str
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
