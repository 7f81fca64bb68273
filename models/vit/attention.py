"""Attention, and what computes it: one choice for all networks of a process.

Left to itself torch 2.15 takes cuDNN's kernels on Hopper and Blackwell (compute capability 9 and 10) in half precision.
Their backward pass has given NaN there (pytorch#196678, torch 2.11 and later; cudnn-frontend#1072, cuDNN 9.26): for a
gradient of queries with a mask and 64 more rows than a multiple of 128 (MaPeT of 32 x 32 patches, say), and for keys
and values of a single query, each where all scores of a row are low. So nobody gets cuDNN's without asking, and those
shapes not even then. Of the others flash takes calls without a mask (MIM, BEiT, CAE, timm's and open_clip's networks),
the memory-efficient one those with (MaPeT, PIM), and plain matrix products what neither takes. Masks that are sliding
windows need not be given as masks at all: `models.vit.windows` has three ways to do without.

On a CPU torch has one kernel. In bfloat16 its backward pass takes five times its forward pass; where the processor
multiplies bfloat16 by itself, the gradients are computed by plain products here.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Way = Literal["blocks", "windows", "flex"]
"""How sliding windows are attended to where not by a mask; see `models.vit.windows`."""
Kernels = Literal["auto", "flash", "efficient", "cudnn", "math", Way]

_MATH = (SDPBackend.MATH,)
_EFFICIENT = (SDPBackend.EFFICIENT_ATTENTION, *_MATH)
_FLASH = (SDPBackend.FLASH_ATTENTION, *_EFFICIENT)
_ALLOWED: Mapping[Kernels, tuple[SDPBackend, ...]] = {
    "auto": _FLASH,
    "flash": _FLASH,
    "efficient": _EFFICIENT,
    "cudnn": (SDPBackend.CUDNN_ATTENTION, *_FLASH),
    "math": _MATH,
    **dict.fromkeys(get_args(Way), _FLASH),
}
# Scores of a piece of a batch, in 2 MB: while they stay in a core's cache, the passes over them are cheap.
_SCORES_AT_ONCE = 2**20
_MULTIPLIES_BFLOAT16 = torch.cpu._is_avx512_bf16_supported()  # this processor; no public function tells
_way: Way | None = None
_trusted = list(_FLASH)  # what takes every shape; torch's own switches, read while compiling, would break the graph


def choose_attention(kernels: Kernels) -> None:
    """Allow these kernels in this process from now on, also to what calls torch's attention by itself.

    torch takes the first that a call fits of: cuDNN (where it prefers that), flash, memory-efficient, matrix products.
    """
    allowed, cuda = _ALLOWED[kernels], torch.backends.cuda
    _trusted[:] = [kernel for kernel in allowed if kernel is not SDPBackend.CUDNN_ATTENTION]
    cuda.enable_cudnn_sdp(SDPBackend.CUDNN_ATTENTION in allowed)
    cuda.enable_flash_sdp(SDPBackend.FLASH_ATTENTION in allowed)
    cuda.enable_mem_efficient_sdp(SDPBackend.EFFICIENT_ATTENTION in allowed)
    cuda.enable_math_sdp(SDPBackend.MATH in allowed)
    choose_way(kernels)


def choose_way(kernels: Kernels) -> None:
    """Attend to sliding windows in this way in this process from now on, and by masks if `kernels` is no way."""
    global _way
    _way = kernels if kernels in get_args(Way) else None  # type: ignore[assignment]


def chosen_way() -> Way | None:
    return _way


def attend(
    queries: Float[Tensor, "B H Q D"],
    keys: Float[Tensor, "B H S D"],
    values: Float[Tensor, "B H S D"],
    attention_mask: Bool[Tensor, "Q S"] | None = None,
) -> Float[Tensor, "B H Q D"]:
    """Compute scaled dot-product attention; `attention_mask`: True where a query attends to a key, None: everywhere."""
    if queries.is_cuda and not _cudnn_is_trusted(queries, keys, attention_mask):
        with sdpa_kernel(_trusted):
            return F.scaled_dot_product_attention(queries, keys, values, attn_mask=attention_mask)
    if queries.device.type == "cpu" and queries.dtype is torch.bfloat16 and _MULTIPLIES_BFLOAT16:
        return _BackwardInProducts.apply(queries, keys, values, attention_mask)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=attention_mask)


def _cudnn_is_trusted(queries: Tensor, keys: Tensor, attention_mask: Tensor | None) -> bool:
    """Tell whether nobody has reported NaN for such a shape."""
    rows = queries.shape[2], keys.shape[2]
    return rows[0] > 1 and (attention_mask is None or all(count % 128 != 64 for count in rows))


class _BackwardInProducts(torch.autograd.Function):
    """torch's forward pass on a CPU, bit for bit, with the gradients of softmax(q k' / sqrt(D) + mask) v.

    As torch's own it keeps no scores, but computes them again. CPU time of both passes against torch's, bfloat16, 16
    images of ViT-T on a Xeon with AVX512_BF16 and AMX: MaPeT's 491 x 344 rows and keys 0.73, its last block 0.53, MIM's
    197 x 197 0.56 (`benchmarks.attention`). In float32 torch's is the faster one.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(queries, keys, values, mask)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, mask = ctx.saved_tensors
        heads, rows, keys = gradient.shape[1], gradient.shape[2], inputs[1].shape[2]
        added = None if mask is None else gradient.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        images = max(1, _SCORES_AT_ONCE // (heads * rows * keys))
        pieces = zip(*(each.split(images) for each in (*inputs, gradient)), strict=True)
        with torch.autocast("cpu", enabled=False):
            found = [_gradients(*piece, added=added) for piece in pieces]
        return *(torch.cat(each) for each in zip(*found, strict=True)), None


def _gradients(
    queries: Tensor, keys: Tensor, values: Tensor, gradient: Tensor, *, added: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values; `added` to the scores."""
    scale = queries.shape[-1] ** -0.5
    queries = queries * scale
    scores = queries @ keys.mT
    shares = (scores if added is None else scores.add_(added)).softmax(-1)
    of_scores = torch._softmax_backward_data(gradient @ values.mT, shares, -1, shares.dtype)
    return of_scores @ keys * scale, of_scores.mT @ queries, shares.mT @ gradient
