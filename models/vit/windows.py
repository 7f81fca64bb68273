"""Attention where every row sees one run of consecutive keys, as the two streams of MaPeT and PIM do: without a mask.

Let F rows see each other and nothing else, and let T steps follow, each with a content row and a query. Content rows
are keys, queries are not; keys lie in the order [F rows | content of step 0, 1, ...]. A content row sees itself and
what comes before, a query what comes before, none more than `width` keys, F or more:

    row                    sees keys
    of the first F         [0, F)
    content of step t      [F + t + 1 - width, F + t + 1), from key 0 on
    query of step t        [F + t - width, F + t), from key 0 on

In PIM the F rows are class token and context, and `width` reaches back to the first key. In MaPeT, with its mask rows
before them, F is every position once, which is what each row sees: `width` is F, step by step a mask row leaves the
window as the content of the same patch enters. So the F rows need no mask, and each stream is causal local attention,
aligned at the lower right: of T rows and all keys (content), of T rows and all keys but the last (queries). For MaPeT
of 196 patches that is 491 rows of 197 keys each, where the masked call computes 344.

Three ways, which differ by rounding; none is the default anywhere before it has been measured on a card:
`blocks`   rows of a stream in blocks, whose keys are a plain view; one mask for all: 226 keys a row on average;
`windows`  the windows of FlashAttention, which takes them as two numbers, in half precision on a GPU; else blocks;
`flex`     FlexAttention, compiled for a GPU by Triton, all rows in one call; else blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention

from models.vit.attention import attend, chosen_way

BLOCK = 49
Local = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Causal local attention aligned at the lower right: queries, keys and values of a stream, and `width`."""
_Made = TypeVar("_Made")


def _kept(make: Callable[..., _Made]) -> Callable[..., _Made]:
    """Make each mask once for all layers and steps; a compiled graph has its own, as Dynamo warns of a cache."""
    once = cache(make)
    return lambda *arguments: make(*arguments) if torch.compiler.is_compiling() else once(*arguments)


@dataclass(frozen=True)
class SlidingWindow:
    """Who attends to whom, in place of a mask: `first` is F, `steps` is T; see the module."""

    first: int
    steps: int
    width: int

    @property
    def rows(self) -> int:
        """The first rows, the content rows, the queries."""
        return self.first + 2 * self.steps

    @property
    def keys(self) -> int:
        return self.first + self.steps

    def sees(self, row: Tensor, key: Tensor) -> Tensor:
        """Tell whether a row, counted from 0, attends to a key."""
        end = torch.where(row < self.keys, (row + 1).clamp_min(self.first), row - self.steps)
        return (key < end) & (key >= end - self.width)

    def mask(self, device: torch.device | str = "cpu") -> Bool[Tensor, "Q S"]:
        """Make the mask that says the same."""
        row, key = torch.arange(self.rows, device=device), torch.arange(self.keys, device=device)
        return self.sees(row[:, None], key)


def attend_in_windows(
    queries: Float[Tensor, "B H Q D"],
    keys: Float[Tensor, "B H S D"],
    values: Float[Tensor, "B H S D"],
    window: SlidingWindow,
) -> Float[Tensor, "B H Q D"]:
    """Compute what `attend` computes with `window.mask()`, in the chosen way; of all rows, or of the queries alone."""
    way = chosen_way()
    if way == "flex" and queries.is_cuda:
        return attend_by_flex(queries, keys, values, window)
    local = attend_by_flash if way == "windows" and _flash_takes(queries, keys, values) else attend_in_blocks
    return attend_by_streams(queries, keys, values, window, local)


def attend_by_streams(queries: Tensor, keys: Tensor, values: Tensor, window: SlidingWindow, local: Local) -> Tensor:
    """Attend by one call without a mask for the first rows, and one of `local` for each stream."""
    first, steps = window.first, window.steps
    asking = local(queries[:, :, -steps:], keys[:, :, :-1], values[:, :, :-1], window.width)
    if queries.shape[2] == steps:
        return asking
    together = attend(*(each[:, :, :first] for each in (queries, keys, values)))
    content = local(queries[:, :, first:-steps], keys, values, window.width)
    return torch.cat([together, content, asking], dim=2)


def attend_in_blocks(queries: Tensor, keys: Tensor, values: Tensor, width: int, *, size: int = BLOCK) -> Tensor:
    """Attend block by block: `size` rows see no more than the `width + size - 1` keys before and at the last one's."""
    rows, before = queries.shape[2], keys.shape[2] - queries.shape[2]
    band = _band(size, width, queries.device)
    found = []
    for start in range(0, rows, size):
        end = min(start + size, rows)
        seen = slice(max(0, before + start + 1 - width), before + end)
        # Aligned at the lower right, as rows and keys are: the last block is lower, the first ones can be narrower.
        mask = band[start - end :, seen.start - seen.stop :]
        found.append(attend(queries[:, :, start:end], keys[:, :, seen], values[:, :, seen], mask))
    return torch.cat(found, dim=2)


@_kept
def _band(rows: int, width: int, device: torch.device) -> Bool[Tensor, "rows S"]:
    """Make the mask in which row r sees keys [r, r + width)."""
    row, key = torch.arange(rows, device=device)[:, None], torch.arange(rows + width - 1, device=device)
    return (key >= row) & (key < row + width)


def attend_by_flash(queries: Tensor, keys: Tensor, values: Tensor, width: int) -> Tensor:
    """Attend by torch's internal operator, on [B, rows, H, D].

    Its public function for windows (`torch.nn.attention.varlen`) wants the rows of all images in one tensor, which
    would be a copy of each stream.
    """
    q, k, v = (each.transpose(1, 2) for each in (queries, keys, values))
    found = torch.ops.aten._flash_attention_forward(
        *(q, k, v, None, None, q.shape[1], k.shape[1], 0.0, True, False),
        window_size_left=width - 1,
        window_size_right=0,
    )
    return found[0].transpose(1, 2)


def _flash_takes(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    return queries.is_cuda and can_use_flash_attention(SDPAParams(queries, keys, values, None, 0.0, False, False))


def attend_by_flex(queries: Tensor, keys: Tensor, values: Tensor, window: SlidingWindow) -> Tensor:
    """Attend by FlexAttention; its kernels skip blocks of keys that no row of a block sees."""
    return _flex()(queries, keys, values, block_mask=_block_mask(window, queries.shape[2], queries.device))


@cache
def _flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@_kept
def _block_mask(window: SlidingWindow, rows: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    before = window.rows - rows  # as of the last block, which has the queries alone
    return create_block_mask(
        lambda image, head, row, key: window.sees(row + before, key), None, None, rows, window.keys, device=str(device)
    )
