"""The contract of a pre-training objective: images and their tokens in, a loss out.

An objective wraps a stock timm Vision Transformer, hides patches from it and asks for their tokens. It draws what to
hide inside `forward`, on the device, from one seed per image (`corruption_seeds` in `masking.py`): neither the loader
nor the training loop knows which objective runs, and a resumed or re-sharded run draws the same.

A new objective is one file with an `Objective`, its choices in `models.objectives.options`, and one entry in
`models.objectives.OBJECTIVES`. Whatever shows it asks the class: title, colours, how its task is told.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.errors import ModelError


@dataclass(frozen=True)
class ObjectiveOutput:
    """The loss of a batch, and what is logged beside it.

    Attributes:
        metrics: detached scalars by name. Every objective has `token_loss` (mean cross entropy of the tokens of the
            predicted patches) and `token_accuracy` (share of them that the best guess names, 0 to 1); some have more.
    """

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]


class Objective(nn.Module, ABC):
    """A backbone with what pre-training needs around it.

    Subclasses take `(backbone, vocabulary, options, *, seed)`. Rows of the network are ordered with the class token
    first. New parameters are drawn from `seed`, without touching the global random state.

    Attributes:
        title: as its authors write it.
        colours: `#rrggbb` on a light page, and the same hue lighter on a dark one.
        task: how it predicts, after the words "predicts 75 of 196 patches, "; `{context}` stands for the number
            of patches that are shown, `{most}` for all patches but one.
        backbone: the network that is kept; the rest is thrown away after pre-training.
        vocabulary: K; tokens lie in [0, K).
        patches: N, the patches of an image.
        predicted: P, the patches of every image whose tokens are predicted.
        context: C = N - P, the other patches.
        mask_token: [1, 1, D], stands for a patch that is hidden; positions are added to it.
        head: D -> K.
        head_rows: None computes all logits at once; a number computes them for that many predicted patches at a time,
            and again for the gradient: less memory, a third more time in the head. A setting of the machine: it changes
            nothing but rounding.
    """

    title: ClassVar[str]
    colours: ClassVar[tuple[str, str]]
    task: ClassVar[str]

    def __init__(self, backbone: VisionTransformer, vocabulary: int, *, predicted: int, seed: int) -> None:
        super().__init__()
        self.patches = count_patches(backbone)
        if not 1 <= predicted <= self.patches:
            raise ModelError(f"{predicted} predicted patches of {self.patches}: at least 1 and at most all of them")
        generator = torch.Generator().manual_seed(seed)
        self.backbone = backbone
        self.vocabulary = vocabulary
        self.predicted = predicted
        self.context = self.patches - predicted
        self.mask_token = nn.Parameter(truncated_normal((1, 1, backbone.embed_dim), generator))
        self.head = seeded_linear(backbone.embed_dim, vocabulary, generator)
        self.head_rows: int | None = None

    @abstractmethod
    def forward(
        self, images: Float[Tensor, "B 3 H W"], tokens: Int[Tensor, "B N"], seeds: Int64[Tensor, " B"]
    ) -> ObjectiveOutput:
        """Corrupt, predict, compare.

        Args:
            images: normalised.
            tokens: of every patch, in raster order.
            seeds: one per image; all randomness of the corruption (and of stochastic depth) comes from them.
        """

    @abstractmethod
    def order(self, seeds: Int64[Tensor, " B"]) -> Int64[Tensor, "B N"]:
        """Return what `forward` hides for these seeds: position -> patch in raster order, the last P are predicted."""

    @abstractmethod
    def predict(self, images: Float[Tensor, "B 3 H W"], order: Int64[Tensor, "B N"]) -> Float[Tensor, "B P K"]:
        """Return the logits of each predicted patch, without stochastic depth; entry t is of order[:, context + t]."""

    def score(self, features: Float[Tensor, "B P D"], tokens: Int[Tensor, "B P"]) -> ObjectiveOutput:
        """Compare the head's predictions with the tokens: mean cross entropy, and how often the best guess is right."""
        rows, wanted = features.flatten(0, 1), tokens.flatten().long()
        if self.head_rows is None:
            loss, right = self._compare(rows, wanted)
        else:
            # F.linear_cross_entropy in chunks needs as little memory, but gives no accuracy and, from bfloat16, the
            # loss in bfloat16; recomputing each piece costs as much as a second pass for the accuracy would.
            pieces = zip(rows.split(self.head_rows), wanted.split(self.head_rows), strict=True)
            parts = [checkpoint(self._compare, *p, use_reentrant=False, preserve_rng_state=False) for p in pieces]
            loss, right = (torch.stack(part).sum() for part in zip(*parts, strict=True))
        loss = loss / len(rows)
        return ObjectiveOutput(loss, {"token_loss": loss.detach(), "token_accuracy": right / len(rows)})

    def _compare(
        self, rows: Float[Tensor, "rows D"], wanted: Int64[Tensor, " rows"]
    ) -> tuple[Float[Tensor, ""], Int64[Tensor, ""]]:
        """Return the summed cross entropy, and how many guesses are right."""
        logits = self.head(rows)
        right = (logits.detach().argmax(1) == wanted).sum()
        return F.cross_entropy(logits.float() if logits.dtype.itemsize < 4 else logits, wanted, reduction="sum"), right


def truncated_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw the initial value of a new weight: normal, deviation 0.02 (cut at +-2, which is a hundred deviations)."""
    return nn.init.trunc_normal_(torch.empty(shape), std=0.02, generator=generator)


def seeded_linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Build a linear layer, weight truncated normal, bias 0, without a draw from the global random state."""
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    with torch.no_grad():
        linear.weight.copy_(truncated_normal((outputs, inputs), generator))
        linear.bias.zero_()
    return linear


def count_patches(backbone: VisionTransformer) -> int:
    """Return N. Raises ModelError unless the backbone has a class token and one position per row."""
    patches = backbone.patch_embed.num_patches
    if backbone.cls_token is None or backbone.pos_embed is None or backbone.pos_embed.shape[1] != patches + 1:
        raise ModelError("an objective needs a Vision Transformer with a class token and learned positions for it too")
    return patches
