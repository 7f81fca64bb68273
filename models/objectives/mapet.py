"""Masked and permuted pre-training: PIM that also tells a predicted patch which positions are still to come.

    loss = - mean over t > c of log p(token_t | z_<t, M_>=t)

M_t is the mask token at the position of predicted patch t. With it every row attends to each position of the image
exactly once, as content or as mask, as it will downstream: PIM's predicted patches do not know how much of the image
is missing. MaPeT, arXiv:2306.07346; where paper and released code differ this follows the code:
- the query of t attends to its own mask M_t; the content of t attends to itself instead;
- class token, context patches and mask rows see each other in both directions, and no predicted patch's content;
- the class token counts as one row before the cut (an option).
"""

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.masking import two_stream_attention_mask
from models.objectives.base import count_patches
from models.objectives.options import MaPeTOptions
from models.objectives.permuted import PermutedObjective
from models.objectives.two_stream import count_predicted
from models.vit.windows import SlidingWindow


class MaPeT(PermutedObjective):
    """Rows: class token, all patches, a mask row and a query per predicted patch. Queries are read and are no keys."""

    title = "MaPeT"
    colours = ("#c2571a", "#f0955a")
    task = (
        "one after the other, each from the {context} shown and those predicted before it ({context} to {most} "
        "patches), knowing also the positions of those to come"
    )

    def __init__(self, backbone: VisionTransformer, vocabulary: int, options: MaPeTOptions, *, seed: int) -> None:
        predicted = count_predicted(options, patches=count_patches(backbone))
        super().__init__(backbone, vocabulary, predicted=predicted, seed=seed)
        self.keys = 1 + self.patches + self.predicted
        attention_mask = two_stream_attention_mask(self.patches, self.context, masks=True)
        self.register_buffer("attention_mask", attention_mask, persistent=False)
        # Every row sees as many keys as there are positions, of each its content or its mask row.
        self.window = SlidingWindow(1 + self.patches, self.predicted, width=1 + self.patches)

    def network_rows(
        self, content: Float[Tensor, "B content D"], masks: Float[Tensor, "B P D"]
    ) -> Float[Tensor, "B Q D"]:
        return torch.cat([content, masks, masks], dim=1)  # queries start as the masks do

    def in_windows(self, rows: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q D"]:
        content, masks, queries = rows.split([1 + self.patches, self.predicted, self.predicted], dim=1)
        return torch.cat([masks, content, queries], dim=1)
