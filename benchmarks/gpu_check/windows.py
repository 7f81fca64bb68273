"""MaPeT's attention, in which every row sees one contiguous window of the keys, computed in several ways.

With the keys in the order [mask rows of the P predicted patches | the a context rows | content of the predicted
patches], every row sees W = P + a keys in a row: mask rows and context rows the first W, the query of predicted patch r
those from r on, its content those from r + 1 on. So the first W rows need no mask, and the others are causal local
attention.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q [B, H, W + 2P, D], k and v [B, H, W + P, D] -> [B, H, W + 2P, D]."""
CPU_WAYS = ("one mask", "dense and mask", "blocks of 49")
WAYS = (*CPU_WAYS, "flash windows", "flex")
"""A call with a mask; the dense rows without one; blocks of the others; flash's own windows; FlexAttention."""


@dataclass(frozen=True)
class Windows:
    """The sizes: `predicted` is P, `context` is a (the class token is one of these rows)."""

    predicted: int = 147
    context: int = 50

    @property
    def width(self) -> int:
        """W, the keys that a row sees."""
        return self.predicted + self.context

    @property
    def keys(self) -> int:
        return self.width + self.predicted

    @property
    def rows(self) -> int:
        """Mask rows, context rows, content of the predicted patches, queries of the predicted patches."""
        return self.width + 2 * self.predicted

    def starts(self, device: str) -> Tensor:
        """Return where the window of each row begins, [rows]."""
        predicted = torch.arange(self.predicted, device=device)
        return torch.cat([predicted.new_zeros(self.width), predicted + 1, predicted])

    def mask(self, device: str) -> Tensor:
        """Make the mask of all windows, bool [rows, keys]; True: attends."""
        start, key = self.starts(device)[:, None], torch.arange(self.keys, device=device)
        return (key >= start) & (key < start + self.width)

    def way(self, name: str, device: str) -> Attend:
        """Return the one of `WAYS` that is called `name`, for q, k and v on `device`."""
        if name == "flash windows":
            return self.flash
        made = {"one mask": self.masked, "dense and mask": self.split, "blocks of 49": self.blocks, "flex": self.flex}
        return made[name](device)

    def masked(self, device: str) -> Attend:
        mask = self.mask(device)
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def split(self, device: str) -> Attend:
        mask, width = self.mask(device)[self.width :], self.width

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            local = F.scaled_dot_product_attention(q[:, :, width:], k, v, attn_mask=mask)
            return torch.cat([self._dense(q, k, v), local], dim=2)

        return attend

    def blocks(self, device: str, size: int = 49) -> Attend:
        """Attend in blocks of rows: a block's keys are a plain view, one mask serves all blocks and both streams."""
        width = self.width
        key, row = torch.arange(width + size - 1, device=device), torch.arange(size, device=device)[:, None]
        band = (key >= row) & (key < row + width)

        def local(q: Tensor, k: Tensor, v: Tensor, shift: int) -> list[Tensor]:
            found = []
            for first in range(0, self.predicted, size):
                count = min(size, self.predicted - first)
                span = slice(first + shift, first + shift + width + count - 1)
                mask = band[:count, : width + count - 1]
                found.append(
                    F.scaled_dot_product_attention(q[:, :, first : first + count], k[:, :, span], v[:, :, span], mask)
                )
            return found

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            content, queries = q[:, :, width:].split(self.predicted, dim=2)
            return torch.cat([self._dense(q, k, v), *local(content, k, v, 1), *local(queries, k, v, 0)], dim=2)

        return attend

    def flash(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend causally in a left window, aligned at the lower right: content rows to all keys but the first, queries
        to all but the last."""
        width = self.width
        content, queries = q[:, :, width:].split(self.predicted, dim=2)
        local = [
            self._flash(content, k[:, :, 1:], v[:, :, 1:]),
            self._flash(queries, k[:, :, :-1], v[:, :, :-1]),
        ]
        return torch.cat([self._dense(q, k, v), *local], dim=2)

    def flex(self, device: str) -> Attend:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        starts, width = self.starts(device), self.width

        def sees(_: Tensor, __: Tensor, row: Tensor, key: Tensor) -> Tensor:
            return (key >= starts[row]) & (key < starts[row] + width)

        mask = create_block_mask(sees, None, None, self.rows, self.keys, device=device)
        compiled = torch.compile(flex_attention)
        return lambda q, k, v: compiled(q, k, v, block_mask=mask)

    def _dense(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first = slice(self.width)
        return F.scaled_dot_product_attention(q[:, :, first], k[:, :, first], v[:, :, first])

    def _flash(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Call torch's internal operator on [B, rows, H, D]: it knows windows, which the public function does not."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        found = torch.ops.aten._flash_attention_forward(
            *(q, k, v, None, None, q.shape[1], k.shape[1], 0.0, True, False),
            window_size_left=self.width - 1,
            window_size_right=0,
        )
        return found[0].transpose(1, 2)
