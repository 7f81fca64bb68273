"""BEiT: masked image modelling with blocks of neighbouring patches hidden instead of scattered ones.

    loss = - mean over masked t of log p(token_t | context patches)

A block leaves fewer neighbours in the context to copy from, which makes the task harder at the same number of masked
patches. Only the choice of patches differs from `MIM`, see `block_masking.py`; the backbone is the one of every
objective here, with learned absolute positions (MaPeT's comparison) where BEiT's own network has relative ones.

Bao et al., BEiT: BERT pre-training of image transformers, arXiv:2106.08254.
"""

from jaxtyping import Int64
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.objectives.block_masking import block_order, check_masked
from models.objectives.mim import MIM
from models.objectives.options import BEiTOptions


class BEiT(MIM):
    """MIM with block-wise masks of exactly `masked` patches: blocks, topped up at random (BEiT v2's rule)."""

    title = "BEiT"
    colours = ("#8a63d2", "#b197ea")
    task = "which lie in blocks, all at once, from the {context} shown"

    def __init__(self, backbone: VisionTransformer, vocabulary: int, options: BEiTOptions, *, seed: int) -> None:
        super().__init__(backbone, vocabulary, options, seed=seed)
        check_masked(self.predicted, self.patches)
        self.min_block = options.min_block

    def order(self, seeds: Int64[Tensor, " B"]) -> Int64[Tensor, "B N"]:
        """Map positions to patches: those of the context, then the P predicted ones, both in raster order."""
        return block_order(seeds, self.backbone.patch_embed.grid_size, self.predicted, min_block=self.min_block)
