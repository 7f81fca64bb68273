"""A grid of linear heads on frozen features, trained at once: their losses are added, so each learns as if alone."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

POOLINGS = ("class+mean", "mean", "class")


@dataclass(frozen=True)
class HeadChoice:
    """Which features a head sees, and how fast it learns: `block` counts from 0."""

    block: int
    pooling: str
    learning_rate: float

    @property
    def words(self) -> str:
        return f"block {self.block + 1}, {self.pooling}, learning rate {self.learning_rate:g}"


class LinearHeads(nn.Module):
    """A linear layer per choice of block, pooling and learning rate.

    Weights are normal with deviation 0.01, biases 0, as in BEiT's linear evaluation (arXiv:2106.08254). `given_rate`
    is the one of the learning rates that was asked for.

    Attributes:
        blocks: those that some head sees, ascending.
        usual: index of the head on the last of them, class token and mean of the patches, with the given rate.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        blocks: tuple[int, ...],
        learning_rates: tuple[float, ...],
        given_rate: float,
        seed: int,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.blocks = sorted(set(blocks))
        self.choices = [HeadChoice(*choice) for choice in product(blocks, POOLINGS, learning_rates)]
        self.usual = self.choices.index(HeadChoice(self.blocks[-1], "class+mean", given_rate))
        self.heads = nn.ModuleList()
        for choice in self.choices:
            head = nn.utils.skip_init(nn.Linear, width * (2 if choice.pooling == "class+mean" else 1), classes)
            with torch.no_grad():
                head.weight.normal_(0, 0.01, generator=generator)
                head.bias.zero_()
            self.heads.append(head)

    def forward(self, features: Float[Tensor, "L B 2 D"]) -> Float[Tensor, "H B K"]:
        """Return the logits of every head.

        Args:
            features: class token and mean of the patches of each image, for each block among the choices.
        """
        place = {block: i for i, block in enumerate(self.blocks)}
        logits = []
        for choice, head in zip(self.choices, self.heads, strict=True):
            both = features[place[choice.block]]
            seen = {"class+mean": both.flatten(1), "mean": both[:, 1], "class": both[:, 0]}[choice.pooling]
            logits.append(head(seen))
        return torch.stack(logits)

    def loss(self, logits: Float[Tensor, "H B K"], labels: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        """Return the sum over heads of each one's mean cross entropy."""
        wanted = labels.expand(len(logits), -1)
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum") / len(labels)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return one group per learning rate, `lr_scale` relative to the largest, which is the optimizer's."""
        largest = max(choice.learning_rate for choice in self.choices)
        groups: dict[float, list[nn.Parameter]] = {}
        for choice, head in zip(self.choices, self.heads, strict=True):
            groups.setdefault(choice.learning_rate, []).extend(head.parameters())
        return [
            {"params": parameters, "weight_decay": weight_decay, "lr_scale": rate / largest}
            for rate, parameters in groups.items()
        ]
