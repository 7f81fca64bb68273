"""AdamW with timm's parameter groups, and a cosine schedule with warm-up that is a pure function of the step."""

import logging
import math
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler

from pipeline.training.options import TrainingOptions


def build_optimizer(groups: list[dict[str, Any]], options: TrainingOptions) -> torch.optim.AdamW:
    """AdamW over groups as timm makes them: with their own `weight_decay`, and `lr_scale` where they learn slower."""
    return torch.optim.AdamW(
        groups, lr=options.peak_learning_rate, betas=options.betas, eps=options.epsilon, weight_decay=0.0, fused=True
    )


class Schedule:
    """timm's cosine schedule, which also minds the `lr_scale` of parameter groups; asked by step, it has no state."""

    def __init__(self, optimizer: torch.optim.Optimizer, options: TrainingOptions, *, steps_per_epoch: int) -> None:
        self._optimizer, self._options, self._steps_per_epoch = optimizer, options, steps_per_epoch
        # It says that a cosine of one epoch changes nothing, which is not so by step.
        logging.getLogger("timm.scheduler.cosine_lr").setLevel(logging.ERROR)
        self._cosine = CosineLRScheduler(
            optimizer,
            t_initial=options.epochs,
            lr_min=options.lowest_learning_rate,
            warmup_t=options.warmup_epochs,
            warmup_lr_init=options.first_learning_rate,
        )

    def set(self, step: int) -> float:
        """Give the optimizer the learning rate of a step (counted from 0), and return it."""
        epochs = step / self._steps_per_epoch
        self._cosine.step(math.floor(epochs) if self._options.schedule == "epoch" else epochs)  # type: ignore[arg-type]
        return float(max(group["lr"] for group in self._optimizer.param_groups))
