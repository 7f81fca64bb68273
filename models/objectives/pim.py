"""Permuted image modelling: predict the patches of a random order one after the other, in one pass.

    loss = - mean over t > c of log p(token_t | z_<t, position of t)

Each target sees the content of all patches before it. XLNet's two-stream attention (arXiv:1906.08237) on patches, the
baseline PIM of MaPeT (arXiv:2306.07346): a content stream in which a target sees itself, and a query stream, with the
same weights, in which it does not. MaPeT without the mask rows; no code of it was released.
"""

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.masking import two_stream_visibility
from models.objectives.base import count_patches
from models.objectives.options import PIMOptions
from models.objectives.permuted import PermutedObjective
from models.objectives.two_stream import count_targets


class PIM(PermutedObjective):
    """Rows: class token, all patches, a query per target; the queries are no keys, and they are read."""

    title = "PIM"
    colours = ("#2f6fbf", "#74aef2")
    task = "one after the other, each from the {shown} shown and the targets before it ({shown} to {most} patches)"

    def __init__(self, backbone: VisionTransformer, vocabulary: int, options: PIMOptions, *, seed: int) -> None:
        targets = count_targets(options, patches=count_patches(backbone))
        super().__init__(backbone, vocabulary, targets=targets, seed=seed)
        self.keys = 1 + self.patches
        visible = two_stream_visibility(self.patches, self.shown, masks=False)
        self.register_buffer("visible", visible, persistent=False)

    def arrange(self, content: Float[Tensor, "B S D"], masks: Float[Tensor, "B T D"]) -> Float[Tensor, "B R D"]:
        return torch.cat([content, masks], dim=1)
