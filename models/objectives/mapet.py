"""Masked and permuted pre-training: PIM in which a target also knows the positions of all that is still to come.

    loss = - mean over t > c of log p(token_t | z_<t, M_>=t)

M_t is the mask token at the position of target t. With it every row attends to each position of the image exactly
once, as content or as mask, as it will downstream: PIM's targets do not know how much of the image is missing.
MaPeT, arXiv:2306.07346; where paper and released code differ this follows the code:
- the own mask M_t is visible to the query of t, and hidden from the content of t, which sees itself;
- class token, shown patches and mask rows see each other in both directions, and no target's content;
- the class token counts as one row before the cut (an option).
"""

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.masking import two_stream_visibility
from models.objectives.base import count_patches
from models.objectives.options import MaPeTOptions
from models.objectives.permuted import PermutedObjective
from models.objectives.two_stream import count_targets


class MaPeT(PermutedObjective):
    """Rows: class token, all patches, a mask row and a query per target; the queries are no keys, and they are read."""

    title = "MaPeT"
    colours = ("#c2571a", "#f0955a")
    task = (
        "one after the other, each from the {shown} shown and the targets before it ({shown} to {most} patches), "
        "knowing also the positions of those to come"
    )

    def __init__(self, backbone: VisionTransformer, vocabulary: int, options: MaPeTOptions, *, seed: int) -> None:
        targets = count_targets(options, patches=count_patches(backbone))
        super().__init__(backbone, vocabulary, targets=targets, seed=seed)
        self.keys = 1 + self.patches + self.targets
        visible = two_stream_visibility(self.patches, self.shown, masks=True)
        self.register_buffer("visible", visible, persistent=False)

    def arrange(self, content: Float[Tensor, "B S D"], masks: Float[Tensor, "B T D"]) -> Float[Tensor, "B R D"]:
        return torch.cat([content, masks, masks], dim=1)  # queries start as the masks do
