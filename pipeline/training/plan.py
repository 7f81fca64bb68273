"""Which images each step takes, as a pure function of the step: nothing to save, nothing that workers could change."""

import math
from collections.abc import Iterator

import numpy as np

from pipeline.data.share import Share
from pipeline.engine.errors import PipelineError
from pipeline.training.options import TrainingOptions


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
        """Yield this process's share of every step from `start` to the end."""
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
