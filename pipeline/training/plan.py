"""Which images each step takes, as a pure function of the step: nothing to save, nothing that workers could change."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from pipeline.engine.errors import PipelineError
from pipeline.training.options import TrainingOptions


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
        """Of each of `rows` how many copies of it stand before it in the step."""
        images = math.ceil(len(self.step_rows) / self.repeats)
        return (np.arange(len(self.step_rows)) // images)[self.first : self.end]

    def of_whole_pairs(self) -> "Share":
        """The same, with the image that a pair of neighbours (places 0 and 1, 2 and 3, ...) lacks at either end."""
        return replace(self, first=self.first // 2 * 2, end=self.end and math.ceil(self.end / 2) * 2)

    def pieces(self, images: int) -> Iterator["Share"]:
        """Shares of at most so many rows that make it up, in order; pairs of neighbours stay together."""
        size = images // 2 * 2 or 1
        end = len(self.step_rows) if self.end is None else self.end
        cuts = (self.first, *range((self.first // size + 1) * size, end, size), end)
        yield from (replace(self, first=begin, end=stop) for begin, stop in pairwise(cuts))


class StepPlan:
    """All steps of a run.

    Every epoch has an order of its own, drawn from (seed, epoch). A step takes the next `batch_size` rows of it, and
    each process a contiguous piece of those: one process or many train on the same images in the same step.

    With `repeats` a step takes so many copies of as many times fewer images. An epoch has as many steps as without, so
    it sees only a part of the images (repeated augmentation as in DeiT, arXiv:2012.12877).
    """

    def __init__(self, rows: np.ndarray, options: TrainingOptions, *, seed: int, repeats: int = 1) -> None:
        """Raises PipelineError when the rows do not fill one step."""
        if len(rows) < options.batch_size:
            raise PipelineError(
                f"{len(rows)} training images do not fill one step of training.batch_size={options.batch_size}; set it "
                f"to {max(len(rows), 1)} or less"
            )
        self._rows, self._batch, self._seed, self._repeats = rows, options.batch_size, seed, repeats
        self.steps_per_epoch = len(rows) // options.batch_size
        self.steps = options.total_steps(self.steps_per_epoch)

    def shares(self, start: int, *, process: int = 0, processes: int = 1) -> Iterator[Share]:
        """What a process does from step `start` to the end."""
        epoch, order, images = -1, self._rows, math.ceil(self._batch / self._repeats)
        even, left = divmod(self._batch, processes)
        begin = process * even + min(process, left)
        end = begin + even + (process < left)
        for step in range(start, self.steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = np.random.default_rng([self._seed, epoch]).permutation(self._rows)
            first = step % self.steps_per_epoch * images
            taken = np.tile(order[first : first + images], self._repeats)[: self._batch]
            yield Share(step, epoch, taken, begin, end, self._repeats)
