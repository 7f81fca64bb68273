"""A timm Vision Transformer run on rows of our choice: which give keys and values, who attends to whom, which are read.

The modules and weights are timm's own; only the calls differ from `Block.forward`:
- keys and values come from the first rows only, since nobody looks at query rows;
- the last block computes only the rows that are read;
- LayerScale is folded into the weights before it, gamma * (W x + b) = (gamma * W) x + gamma * b, which saves a pass
  over all rows and its memory (ViT-T: 4-5 % of the time, 9-10 % of the bytes saved for backward);
- stochastic depth is drawn from the images' seeds, one draw per image and branch for all rows of the image.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from timm.layers import Attention, DropPath, LayerScale, Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.constants import constant
from models.masking import DROP_PATH_STREAM, uniforms
from models.vit.attention import attend
from models.vit.windows import SlidingWindow, attend_in_windows


def embed(
    backbone: VisionTransformer, images: Float[Tensor, "B 3 H W"]
) -> tuple[Float[Tensor, "B 1 D"], Float[Tensor, "B N D"]]:
    """Return the class row and the patch rows in raster order, positions added."""
    positions = cast(Tensor, backbone.pos_embed)
    patches = backbone.patch_embed(images) + positions[:, 1:]
    class_row = cast(Tensor, backbone.cls_token) + positions[:, :1]
    return class_row.expand(len(images), -1, -1), patches


def embed_masks(backbone: VisionTransformer, mask_token: Float[Tensor, "1 1 D"]) -> Float[Tensor, "1 N D"]:
    """Return the mask token at every patch, positions added."""
    return mask_token + cast(Tensor, backbone.pos_embed)[:, 1:]


def take(rows: Float[Tensor, "B N D"], index: Int64[Tensor, "B M"]) -> Float[Tensor, "B M D"]:
    """Choose rows of each image by its own `index`."""
    return rows.gather(1, index[:, :, None].expand(-1, -1, rows.shape[2]))


def drop_path_rates(backbone: VisionTransformer) -> list[tuple[float, float]]:
    """Return how likely stochastic depth leaves out the two branches of each block."""
    return [(_rate(block.drop_path1), _rate(block.drop_path2)) for block in cast(list[Block], backbone.blocks)]


def drop_path_scales(backbone: VisionTransformer, seeds: Int64[Tensor, " B"]) -> Float[Tensor, "L 2 B"] | None:
    """Draw what stochastic depth multiplies the two branches of each block by, 0 or 1 / (1 - rate); None: no need."""
    rates = drop_path_rates(backbone)
    if not backbone.training or not any(map(any, rates)):
        return None
    draws = uniforms(seeds, 2 * len(rates), DROP_PATH_STREAM).T.unflatten(0, (len(rates), 2))
    rate = constant(rates, device=draws.device, dtype=draws.dtype)[:, :, None]
    return ((draws >= rate) / (1 - rate)).float()


def encode(
    backbone: VisionTransformer,
    rows: Float[Tensor, "B Q D"],
    *,
    keys: int | None = None,
    attention_mask: Bool[Tensor, "Q S"] | SlidingWindow | None = None,
    read: int | None = None,
    scales: Float[Tensor, "L 2 B"] | None = None,
) -> Float[Tensor, "B P D"]:
    """Run all blocks and the final norm.

    Args:
        rows: embedded, positions added.
        keys: the first so many rows give keys and values; default all.
        attention_mask: which row attends to which key, or the window in a mask's place; default all to all.
        read: the last so many rows are wanted; default all. Of a window's rows either all or the queries.
        scales: of stochastic depth, from `drop_path_scales`.

    Returns:
        The rows that are read.
    """
    blocks = cast(list[Block], backbone.blocks)
    for i, block in enumerate(blocks):
        wanted = read if i == len(blocks) - 1 else None
        rows = _through(backbone, block, rows, keys, attention_mask, wanted, None if scales is None else scales[i])
    return backbone.norm(rows)


def rows_after(
    backbone: VisionTransformer,
    rows: Float[Tensor, "B Q D"],
    blocks: Sequence[int],
    *,
    scales: Float[Tensor, "L 2 B"] | None = None,
) -> list[Float[Tensor, "B Q D"]]:
    """Return the rows as each of some blocks leaves them, without the final norm.

    Args:
        rows: embedded, positions added.
        blocks: counted from 0, ascending.
        scales: of stochastic depth, from `drop_path_scales`.
    """
    found = []
    for i, block in enumerate(cast(list[Block], backbone.blocks)[: blocks[-1] + 1]):
        rows = _through(backbone, block, rows, None, None, None, None if scales is None else scales[i])
        if i in blocks:
            found.append(rows)
    return found


def _through(
    backbone: VisionTransformer, block: Block, rows: Float[Tensor, "B Q D"], *arguments: Any
) -> Float[Tensor, "B P D"]:
    """Call `run_block`, and compute its insides again for the gradient if the backbone is told to save memory."""
    if backbone.grad_checkpointing and torch.is_grad_enabled():
        # No random state is used inside, so there is none to keep.
        kept: Tensor = checkpoint(run_block, block, rows, *arguments, use_reentrant=False, preserve_rng_state=False)
        return kept
    return run_block(block, rows, *arguments)


def run_block(
    block: Block,
    rows: Float[Tensor, "B Q D"],
    keys: int | None = None,
    attention_mask: Bool[Tensor, "Q S"] | SlidingWindow | None = None,
    read: int | None = None,
    scale: Float[Tensor, "2 B"] | None = None,
) -> Float[Tensor, "B P D"]:
    """Run one pre-norm block, for the last `read` rows (default all); arguments as for `encode`."""
    normed = block.norm1(rows)
    first = 0 if read is None else rows.shape[1] - read
    seen = attention_mask[first:] if isinstance(attention_mask, Tensor) else attention_mask
    attention, mlp = cast(Attention, block.attn), cast(Mlp, block.mlp)
    attended = _attend(attention, _between(normed, first), _between(normed, 0, keys), seen)
    rows = _add(_between(rows, first), _scaled_linear(attention.proj, block.ls1, attended), scale, 0)
    hidden = mlp.act(mlp.fc1(block.norm2(rows)))
    return _add(rows, _scaled_linear(cast(nn.Linear, mlp.fc2), block.ls2, hidden), scale, 1)


def _between(rows: Float[Tensor, "B Q D"], first: int, end: int | None = None) -> Float[Tensor, "B M D"]:
    """Return `rows[:, first:end]`, and all rows unsliced: the gradient of a slice is a copy among zeros."""
    end = rows.shape[1] if end is None else end
    return rows if (first, end) == (0, rows.shape[1]) else rows[:, first:end]


def _attend(
    attention: Attention,
    queries: Float[Tensor, "B Q D"],
    content: Float[Tensor, "B S D"],
    attention_mask: Bool[Tensor, "Q S"] | SlidingWindow | None,
) -> Float[Tensor, "B Q D"]:
    """Let rows attend to others; the output projection comes after."""
    width = attention.attn_dim
    if queries.shape == content.shape and attention_mask is None:
        q, k, v = attention.qkv(content).split(width, dim=-1)
    else:
        # timm keeps q, k and v in one weight, in this order.
        weight_q, weight_kv = attention.qkv.weight.split([width, 2 * width])
        bias_q, bias_kv = attention.qkv.bias.split([width, 2 * width])
        q = F.linear(queries, weight_q, bias_q)
        k, v = F.linear(content, weight_kv, bias_kv).split(width, dim=-1)
    q, k, v = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # [B, heads, rows, D/H]
    if isinstance(attention_mask, SlidingWindow):
        attended = attend_in_windows(q, k, v, attention_mask)
    else:
        attended = attend(q, k, v, attention_mask)
    return attended.transpose(1, 2).flatten(2)


def _scaled_linear(linear: nn.Linear, layer_scale: nn.Module, rows: Float[Tensor, "B Q F"]) -> Float[Tensor, "B Q D"]:
    """Apply a linear layer and the LayerScale after it as one."""
    if not isinstance(layer_scale, LayerScale):
        return linear(rows)
    gamma = layer_scale.gamma
    return F.linear(rows, gamma[:, None] * linear.weight, gamma * linear.bias)


def _add(
    rows: Float[Tensor, "B Q D"], branch: Float[Tensor, "B Q D"], scale: Float[Tensor, "2 B"] | None, which: int
) -> Float[Tensor, "B Q D"]:
    return rows + (branch if scale is None else branch * scale[which, :, None, None])


def _rate(drop_path: nn.Module) -> float:
    return drop_path.drop_prob if isinstance(drop_path, DropPath) else 0.0
