"""Context autoencoder: an encoder that sees context patches only, and a neck that does the guessing.

    loss = - mean over masked t of log p(token_t | z)  +  2 * mean (z - stop_gradient(f(masked patches)))^2
    z = regressor(f(context patches))

The encoder f is left to represent what it sees; the regressor predicts what f would say of the masked patches, and the
decoder reads their tokens from this prediction. The second term, the alignment, ties z to the space of f; both terms
are reported (`token_loss`, `alignment_loss`). Half of the patches are masked, block-wise.

Chen et al., Context autoencoder for self-supervised representation learning, arXiv:2202.03026. Where ours differs:
- the encoder is the stock timm network of every objective here: learned positions instead of fixed sine and cosine
  ones (the neck has those, see `cae_regressor`), and its initialisation; that of neck, head and mask token is CAE's;
- f(masked patches) comes from the encoder of the same step. The released code keeps a copy, one step behind (its
  author calls the plain encoder equivalent). Like there, stochastic depth is active in it, with draws of its own.
"""

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from models.objectives.base import Objective, ObjectiveOutput
from models.objectives.block_masking import ROUNDS, block_order, check_masked
from models.objectives.cae_regressor import CAENeck, NeckOutput, NeckShape
from models.objectives.options import CAEOptions
from models.vit.trunk import drop_path_scales, embed, encode, take

MASK_TOKEN_STD = 0.02


class CAE(Objective):
    """Encoder on class token and context patches, regressor and decoder for the masked ones.

    Width, heads and stochastic depth (the rate of its last block) of the neck are the backbone's.
    """

    title = "CAE"
    colours = ("#2a9d8f", "#5cc9bb")
    task = "which lie in blocks, all at once, from the {context} shown"

    def __init__(self, backbone: VisionTransformer, vocabulary: int, options: CAEOptions, *, seed: int) -> None:
        super().__init__(backbone, vocabulary, predicted=options.masked, seed=seed)
        check_masked(self.predicted, self.patches)
        self.options = options
        last = cast(Block, backbone.blocks[-1])
        shape = NeckShape(
            width=backbone.embed_dim,
            heads=cast(Attention, last.attn).num_heads,
            regressor_depth=options.regressor_depth,
            decoder_depth=options.decoder_depth,
            layer_scale=options.layer_scale,
            drop_path=getattr(last.drop_path1, "drop_prob", 0.0),
        )
        self.neck = CAENeck(shape, backbone.patch_embed.grid_size, seed=seed + 1)
        self._initialise(torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator) -> None:
        """Draw as CAE does: mask token normal, cut at one deviation of 0.02; head Xavier-uniform, like the neck."""
        nn.init.trunc_normal_(
            self.mask_token, std=MASK_TOKEN_STD, a=-MASK_TOKEN_STD, b=MASK_TOKEN_STD, generator=generator
        )
        nn.init.xavier_uniform_(self.head.weight, generator=generator)

    def order(self, seeds: Int64[Tensor, " B"]) -> Int64[Tensor, "B N"]:
        """Map positions to patches: those of the context, then the P predicted ones, both in raster order."""
        grid = self.backbone.patch_embed.grid_size
        # The released CAE goes on trying until blocks alone make up the number.
        return block_order(seeds, grid, self.predicted, min_block=self.options.min_block, tries=ROUNDS)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], tokens: Int[Tensor, "B N"], seeds: Int64[Tensor, " B"]
    ) -> ObjectiveOutput:
        order = self.order(seeds)
        rows = self.rows(images, order)
        neck = self.guess(rows[:, : 1 + self.context], order, seeds)
        token = self.score(neck.decoded, tokens.gather(1, order[:, self.context :]))
        alignment = F.mse_loss(neck.latent.float(), self.alignment_targets(rows, seeds))
        loss = token.loss + self.options.alignment_weight * alignment
        return ObjectiveOutput(loss, token.metrics | {"alignment_loss": alignment.detach()})

    def predict(self, images: Float[Tensor, "B 3 H W"], order: Int64[Tensor, "B N"]) -> Float[Tensor, "B P K"]:
        """Return the logits of each predicted patch, without stochastic depth; entry t is of order[:, context + t]."""
        return self.head(self.guess(self.rows(images, order)[:, : 1 + self.context], order).decoded)

    def rows(self, images: Float[Tensor, "B 3 H W"], order: Int64[Tensor, "B N"]) -> Float[Tensor, "B content D"]:
        """Return what enters the first block: class token, context patches, predicted patches."""
        class_row, patches = embed(self.backbone, images)
        return torch.cat([class_row, take(patches, order)], dim=1)

    def guess(
        self,
        rows: Float[Tensor, "B content D"],
        order: Int64[Tensor, "B N"],
        seeds: Int64[Tensor, " B"] | None = None,
    ) -> NeckOutput:
        """Guess the masked patches from the class token and the context, `rows`; `seeds` for stochastic depth."""
        scales = None if seeds is None else drop_path_scales(self.backbone, seeds)
        features = encode(self.backbone, rows, read=self.context, scales=scales)
        return self.neck(features, self.mask_token, order, seeds)

    @torch.no_grad()
    def alignment_targets(
        self, rows: Float[Tensor, "B content D"], seeds: Int64[Tensor, " B"]
    ) -> Float[Tensor, "B P D"]:
        """Return float32 features of the masked patches from an encoder that sees only them and the class token."""
        hidden = torch.cat([rows[:, :1], rows[:, 1 + self.context :]], dim=1)
        scales = drop_path_scales(self.backbone, ~seeds)  # other seeds: a draw of its own
        return encode(self.backbone, hidden, read=self.predicted, scales=scales).float()
