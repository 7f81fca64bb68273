"""Which images each step takes, as a pure function of the step: nothing to save, nothing that workers could change."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.errors import PipelineError
from pipeline.training.options import TrainingOptions


@dataclass(frozen=True)
class Share:
    """The rows of the image index that one process takes of one step."""

    step: int
    epoch: int
    rows: np.ndarray


class StepPlan:
    """All steps of a run.

    Every epoch has an order of its own, drawn from (seed, epoch). A step takes the next `batch_size` rows of it, and
    each process a contiguous piece of those: one process or many train on the same images in the same step.
    """

    def __init__(self, rows: np.ndarray, options: TrainingOptions, *, seed: int) -> None:
        """Raises PipelineError when the rows do not fill one step."""
        if len(rows) < options.batch_size:
            raise PipelineError(
                f"{len(rows)} training images do not fill one step of training.batch_size={options.batch_size}; set it "
                f"to {max(len(rows), 1)} or less"
            )
        self._rows, self._batch, self._seed = rows, options.batch_size, seed
        self.steps_per_epoch = len(rows) // options.batch_size
        self.steps = options.total_steps(self.steps_per_epoch)

    def shares(self, start: int, *, process: int = 0, processes: int = 1) -> Iterator[Share]:
        """What a process does from step `start` to the end."""
        epoch, order = -1, self._rows
        for step in range(start, self.steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = np.random.default_rng([self._seed, epoch]).permutation(self._rows)
            first = step % self.steps_per_epoch * self._batch
            yield Share(step, epoch, np.array_split(order[first : first + self._batch], processes)[process])
