"""What CAE puts behind its encoder: a latent contextual regressor and a decoder (Chen et al., 2202.03026).

The regressor predicts the encoder's features of the masked patches from those of the context. x starts as one
mask token for every masked patch, v are the context's features, p are positions; a block does

    x <- LN(x + scale1 * attention(q = LN_q(x + p_masked), k = LN_k([v, x] + [p_context, p_masked]), v = LN_v([v, x])))
    x <- x + scale2 * MLP(x)

so positions steer who looks where and are not part of what is read. The decoder is a plain pre-norm transformer over
the masked patches alone, to whose predicted features p is added.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int64
from timm.layers import LayerScale, Mlp, build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from models.constants import constant
from models.errors import ModelError
from models.masking import uniforms
from models.vit.attention import attend
from models.vit.trunk import run_block

NORM_EPS = 1e-6  # as in timm's ViT
NECK_DROP_PATH_STREAM = 18  # of random numbers, apart from those of `masking.py` and `block_masking.py`


@dataclass(frozen=True)
class NeckShape:
    """Sizes of the neck.

    Attributes:
        width: D, the encoder's, so that predictions and features compare without a projection.
        heads: of every block.
        regressor_depth, decoder_depth: numbers of blocks.
        layer_scale: start of LayerScale in every block.
        drop_path: rate of stochastic depth, in [0, 1), of the last block of the regressor and of the decoder; in both
            it grows linearly from 0.
    """

    width: int
    heads: int
    regressor_depth: int
    decoder_depth: int
    layer_scale: float
    drop_path: float


@dataclass(frozen=True)
class NeckOutput:
    """For every masked patch: `latent`, the predicted feature of the encoder, and `decoded`, what the head reads."""

    latent: Float[Tensor, "B P D"]
    decoded: Float[Tensor, "B P D"]


class RegressorBlock(nn.Module):
    """Cross attention from masked patches to all patches, then an MLP; see the formula above."""

    def __init__(self, shape: NeckShape):
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.query_norm, self.key_norm, self.value_norm, self.residual_norm = (
            nn.LayerNorm(width, eps=NORM_EPS) for _ in range(4)
        )
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # softmax would cancel a bias of keys
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.mlp = Mlp(width, 4 * width)
        self.attention_scale = LayerScale(width, init_values=shape.layer_scale)
        self.mlp_scale = LayerScale(width, init_values=shape.layer_scale)

    def forward(
        self,
        masked: Float[Tensor, "B P D"],
        context: Float[Tensor, "B C D"],
        positions: Float[Tensor, "B N D"],
        scale: Float[Tensor, "2 B 1 1"] | None,
    ) -> Float[Tensor, "B P D"]:
        """Refine the features of the masked patches once.

        Args:
            positions: of the context patches, then of the masked ones.
            scale: by which stochastic depth multiplies the two branches.
        """
        content = torch.cat([context, masked], dim=1)
        query = self.query(self.query_norm(masked + positions[:, context.shape[1] :]))
        key = self.key(self.key_norm(content + positions))
        value = self.value(self.value_norm(content))
        query, key, value = (rows.unflatten(2, (self.heads, -1)).transpose(1, 2) for rows in (query, key, value))
        attended = attend(query, key, value).transpose(1, 2).flatten(2)
        branch = self.attention_scale(self.proj(attended))
        masked = self.residual_norm(masked + (branch if scale is None else branch * scale[0]))
        branch = self.mlp_scale(self.mlp(masked))
        return masked + (branch if scale is None else branch * scale[1])


class CAENeck(nn.Module):
    """Regressor and decoder.

    Positions are CAE's own, fixed 2-D sine and cosine ones, not the encoder's learned ones. Nothing else tells masked
    patches apart, and the learned ones start near zero (0.02), while the rows of the regressor (after its first
    block) and of the decoder are of size one: logits of different patches would start four times closer together.

    Raises:
        ModelError: a width that is not divisible by 4 (positions) and by the heads.
    """

    positions: Tensor

    def __init__(self, shape: NeckShape, grid: tuple[int, int], *, seed: int):
        super().__init__()
        width = shape.width
        if width % 4 or width % shape.heads:
            raise ModelError(f"CAE: width {width}, expected a multiple of 4 and of the {shape.heads} heads")
        depths = (shape.regressor_depth, shape.decoder_depth)
        self.drop_path_rates = [rate for depth in depths for rate in torch.linspace(0, shape.drop_path, depth).tolist()]
        with torch.random.fork_rng(devices=[]):  # layers draw weights, which are drawn again below
            self.regressor = nn.ModuleList(RegressorBlock(shape) for _ in range(shape.regressor_depth))
            self.decoder = nn.ModuleList(_decoder_block(shape) for _ in range(shape.decoder_depth))
        self.regressor_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.register_buffer("positions", build_sincos2d_pos_embed(list(grid), width), persistent=False)
        self._initialise(torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator) -> None:
        """Draw as CAE does: Xavier-uniform matrices, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        context: Float[Tensor, "B C D"],
        mask_token: Float[Tensor, "1 1 D"],
        order: Int64[Tensor, "B N"],
        seeds: Int64[Tensor, " B"] | None = None,
    ) -> NeckOutput:
        """Predict features and decode them.

        Args:
            context: the encoder's features of the first C patches of `order`, without the class token.
            mask_token: what the regressor knows of a masked patch, but for its position.
            order: the context patches, then the P masked ones.
            seeds: for stochastic depth in training; without them there is none.
        """
        count, seen = context.shape[:2]
        positions = self.positions[order]
        scales = self._scales(seeds)
        masked = mask_token.expand(count, order.shape[1] - seen, -1)
        for i, block in enumerate(self.regressor):
            masked = block(masked, context, positions, None if scales is None else scales[i, ..., None, None])
        latent = self.regressor_norm(masked)
        decoded = latent + positions[:, seen:]
        for i, block in enumerate(self.decoder, start=len(self.regressor)):
            decoded = run_block(cast(Block, block), decoded, scale=None if scales is None else scales[i])
        return NeckOutput(latent, self.decoder_norm(decoded))

    def _scales(self, seeds: Int64[Tensor, " B"] | None) -> Float[Tensor, "L 2 B"] | None:
        """Draw as `trunk.drop_path_scales` does, for the regressor's blocks, then the decoder's."""
        if seeds is None or not self.training or not any(self.drop_path_rates):
            return None
        blocks = len(self.drop_path_rates)
        draws = uniforms(seeds, 2 * blocks, NECK_DROP_PATH_STREAM).T.unflatten(0, (blocks, 2))
        rate = constant(self.drop_path_rates, device=draws.device, dtype=draws.dtype)[:, None, None]
        return ((draws >= rate) / (1 - rate)).float()


def _decoder_block(shape: NeckShape) -> Block:
    return Block(shape.width, shape.heads, qkv_bias=True, init_values=shape.layer_scale)
