"""AdamW with timm's parameter groups, and a learning rate that is a pure function of the step.

    warm-up:           first + (peak - first) * step / warmup
    then, of n steps:  lowest + (peak - lowest) * (1 + cos(pi * step / n)) / 2      cosine
                       lowest + (peak - lowest) * (1 - step / n)                    linear, "poly" of power 1

    cosine_after_warmup, w steps of warm-up:
                       first + (peak - first) * step / (w - 1)                      its last step is at the peak
    then               lowest + (peak - lowest) * (1 + cos(pi * (step - w) / (n - w))) / 2

The first cosine is timm's, to the last bit; the second is BEiT v2's, by which it trains VQ-KD. mmsegmentation, whose
linear decay Table 10 uses, multiplies its warm-up with the decay, which makes the first 1,500 of 160,000 steps up to
1 % slower than here.
"""

import math
from typing import Any

import torch

from pipeline.training.options import TrainingOptions


def build_optimizer(groups: list[dict[str, Any]], options: TrainingOptions) -> torch.optim.AdamW:
    """Return AdamW over groups as timm makes them: with their own `weight_decay`, and `lr_scale` where they learn
    slower."""
    return torch.optim.AdamW(
        groups, lr=options.peak_learning_rate, betas=options.betas, eps=options.epsilon, weight_decay=0.0, fused=True
    )


def learning_rate(step: int, options: TrainingOptions, *, steps_per_epoch: int) -> float:
    """Return the rate of a step, counted from 0."""
    # Everything in epochs, as timm has it.
    now = step / steps_per_epoch
    if options.schedule == "epoch":
        now = math.floor(now)
    end = options.total_steps(steps_per_epoch) / steps_per_epoch
    warmup = options.warmup_epochs + options.warmup_steps / steps_per_epoch
    first, peak, lowest = options.first_learning_rate, options.peak_learning_rate, options.lowest_learning_rate
    is_late = options.decay == "cosine_after_warmup"
    if now < warmup:
        last = warmup - 1 / steps_per_epoch if is_late else warmup
        return first + now * ((peak - first) / last) if last else first
    if is_late:
        now, end = now - warmup, end - warmup
    left = 1 - now / end if options.decay == "linear" else (1 + math.cos(math.pi * now / end)) / 2
    return lowest + (peak - lowest) * left


class Schedule:
    """Gives an optimizer the learning rate of a step, times the `lr_scale` of each parameter group; has no state."""

    def __init__(self, optimizer: torch.optim.Optimizer, options: TrainingOptions, *, steps_per_epoch: int) -> None:
        self._optimizer, self._options, self._steps_per_epoch = optimizer, options, steps_per_epoch

    def set(self, step: int) -> float:
        """Set the learning rate of a step (counted from 0), and return the largest of the groups."""
        rate = learning_rate(step, self._options, steps_per_epoch=self._steps_per_epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return float(max(group["lr"] for group in self._optimizer.param_groups))
