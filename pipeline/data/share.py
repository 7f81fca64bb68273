"""What one process takes of one step of training: rows of the image index."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Share:
    """What one process takes of one step.

    Attributes:
        step_rows: the rows of the image index that all processes take together.
        first, end: the places of this process's among them; None: to the last.
        repeats: how often the step takes each image (the last ones once less where they do not fill it): copies of it
            stand far apart.
    """

    step: int
    epoch: int
    step_rows: np.ndarray
    first: int = 0
    end: int | None = None
    repeats: int = 1

    @property
    def rows(self) -> np.ndarray:
        """This process's, which may hold a row several times."""
        return self.step_rows[self.first : self.end]

    @property
    def copies(self) -> np.ndarray:
        """How many copies of each of `rows` stand before it in the step."""
        images = math.ceil(len(self.step_rows) / self.repeats)
        return (np.arange(len(self.step_rows)) // images)[self.first : self.end]

    def of_whole_pairs(self) -> "Share":
        """Return the same, with the image that a pair of neighbours (places 0 and 1, 2 and 3, ...) lacks at either
        end."""
        return replace(self, first=self.first // 2 * 2, end=self.end and math.ceil(self.end / 2) * 2)

    def pieces(self, images: int) -> Iterator["Share"]:
        """Yield shares of at most so many rows that make it up, in order; pairs of neighbours stay together."""
        size = images // 2 * 2 or 1
        end = len(self.step_rows) if self.end is None else self.end
        cuts = (self.first, *range((self.first // size + 1) * size, end, size), end)
        yield from (replace(self, first=begin, end=stop) for begin, stop in pairwise(cuts))
