"""Masked image modelling: predict the tokens of randomly chosen patches that are replaced by a mask token.

    loss = - mean over masked t of log p(token_t | context patches)

Every masked token is predicted independently of the others. The corruption of BERT (arXiv:1810.04805) on patches, as
the baseline MIM of MaPeT (arXiv:2306.07346); BEiT (arXiv:2106.08254) masks blocks instead.
"""

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.objectives.options import MIMOptions
from models.objectives.permuted import PermutedObjective


class MIM(PermutedObjective):
    """Rows: class token, context patches, a mask row per predicted patch. All attend to all; mask rows are read."""

    title = "MIM"
    colours = ("#7a7f87", "#a4abb5")
    task = "all at once, from the {context} shown"

    def __init__(self, backbone: VisionTransformer, vocabulary: int, options: MIMOptions, *, seed: int) -> None:
        super().__init__(backbone, vocabulary, predicted=options.masked, seed=seed)
        self.keys = 1 + self.patches
        self.attention_mask = None

    def network_rows(
        self, content: Float[Tensor, "B content D"], masks: Float[Tensor, "B P D"]
    ) -> Float[Tensor, "B Q D"]:
        return torch.cat([content[:, : 1 + self.context], masks], dim=1)
