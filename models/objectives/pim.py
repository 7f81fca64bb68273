"""Permuted image modelling: predict the patches of a random order one after the other, in one pass.

    loss = - mean over t > c of log p(token_t | z_<t, position of t)

Each predicted patch sees the content of all patches before it. XLNet's two-stream attention (arXiv:1906.08237) on
patches, the baseline PIM of MaPeT (arXiv:2306.07346): a content stream in which a predicted patch sees itself, and a
query stream, with the same weights, in which it does not. MaPeT without the mask rows; no code of it was released.
"""

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.masking import two_stream_attention_mask
from models.objectives.base import count_patches
from models.objectives.options import PIMOptions
from models.objectives.permuted import PermutedObjective
from models.objectives.two_stream import count_predicted
from models.vit.windows import SlidingWindow


class PIM(PermutedObjective):
    """Rows: class token, all patches, a query per predicted patch. Queries are read and are no keys."""

    title = "PIM"
    colours = ("#2f6fbf", "#74aef2")
    task = (
        "one after the other, each from the {context} shown and those predicted before it ({context} to {most} patches)"
    )

    def __init__(self, backbone: VisionTransformer, vocabulary: int, options: PIMOptions, *, seed: int) -> None:
        predicted = count_predicted(options, patches=count_patches(backbone))
        super().__init__(backbone, vocabulary, predicted=predicted, seed=seed)
        self.keys = 1 + self.patches
        attention_mask = two_stream_attention_mask(self.patches, self.context, masks=False)
        self.register_buffer("attention_mask", attention_mask, persistent=False)
        self.window = SlidingWindow(1 + self.context, self.predicted, width=1 + self.patches)  # all keys before

    def network_rows(
        self, content: Float[Tensor, "B content D"], masks: Float[Tensor, "B P D"]
    ) -> Float[Tensor, "B Q D"]:
        return torch.cat([content, masks], dim=1)
