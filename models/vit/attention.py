"""Attention, and which of torch's kernels compute it on a GPU: one choice for all networks of a process.

Left to itself torch 2.15 takes cuDNN's kernels on Hopper and Blackwell (compute capability 9 and 10) in half precision.
Their backward pass has given NaN there (pytorch#196678, torch 2.11 and later; cudnn-frontend#1072, cuDNN 9.26): for a
gradient of queries with a mask and 64 more rows than a multiple of 128 (MaPeT of 32 x 32 patches, say), and for keys
and values of a single query, each where all scores of a row are low. So nobody gets cuDNN's without asking, and those
shapes not even then. Of the others flash takes calls without a mask (MIM, BEiT, CAE, timm's and open_clip's networks),
the memory-efficient one those with (MaPeT, PIM), and plain matrix products what neither takes.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Kernels = Literal["auto", "flash", "efficient", "cudnn", "math"]

_MATH = (SDPBackend.MATH,)
_EFFICIENT = (SDPBackend.EFFICIENT_ATTENTION, *_MATH)
_FLASH = (SDPBackend.FLASH_ATTENTION, *_EFFICIENT)
_ALLOWED: Mapping[Kernels, tuple[SDPBackend, ...]] = {
    "auto": _FLASH,
    "flash": _FLASH,
    "efficient": _EFFICIENT,
    "cudnn": (SDPBackend.CUDNN_ATTENTION, *_FLASH),
    "math": _MATH,
}
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
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=attention_mask)


def _cudnn_is_trusted(queries: Tensor, keys: Tensor, attention_mask: Tensor | None) -> bool:
    """Tell whether nobody has reported NaN for such a shape."""
    rows = queries.shape[2], keys.shape[2]
    return rows[0] > 1 and (attention_mask is None or all(count % 128 != 64 for count in rows))
