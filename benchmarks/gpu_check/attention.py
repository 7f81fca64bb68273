"""Step `attention`: which implementations give right gradients for our shapes, and what each costs.

Reported against other cards: NaN in the gradient of the queries with a mask where a length leaves 64 when divided by
128 (pytorch#196678), and of keys and values (cudnn-frontend#1072).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_check.checks import Attempt, Check, Setup, passed_if
from benchmarks.gpu_check.clock import peak_memory, seconds
from models.vit.attention import attend
from models.vit.windows import (
    SlidingWindow,
    attend_by_flash,
    attend_by_flex,
    attend_by_streams,
    attend_in_blocks,
)

BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "mem-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "math": SDPBackend.MATH,
}
CPU_WAYS = ("one mask", "blocks of 147", "blocks of 49")
WAYS = (*CPU_WAYS, "flash windows", "flex")
"""Of MaPeT's windows: one call with a mask; a block for each stream, or three; flash's windows; FlexAttention."""
# Of the largest number of each result: what bfloat16 rounds, many times over, and far from what a wrong mask does.
TOLERANCE = 0.04


@dataclass(frozen=True)
class Shape:
    """A call of attention. `score`: how large products of queries and keys are made, by adding to all of them."""

    name: str
    rows: int
    keys: int
    masked: bool = True
    score: float = 0.0

    def mask(self, device: str) -> Tensor | None:
        """Make a mask whose window moves on with the row and is never empty; None where nothing is masked."""
        if not self.masked:
            return None
        row, key = torch.arange(self.rows, device=device)[:, None], torch.arange(self.keys, device=device)
        start = row * (self.keys // 3) // self.rows
        return (key >= start) & (key < start + self.keys - self.keys // 3)


SHAPES = (
    Shape("MaPeT 491 x 344", 491, 344),
    Shape("MaPeT, last block 147 x 344", 147, 344),
    Shape("PIM 344 x 197", 344, 197),
    Shape("MIM 197 x 197", 197, 197, masked=False),
    Shape("320 keys", 491, 320),
    Shape("320 keys and rows", 320, 320),
    Shape("320 keys, low scores", 491, 320, score=-80),
)
_REFUSALS = ("No available kernel", "No viable backend", "Invalid backend")
Tensors = tuple[Tensor, Tensor, Tensor]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries [B, H, rows, D], keys and values [B, H, keys, D] -> [B, H, rows, D]."""


def attempts(setup: Setup) -> Iterator[Attempt]:
    for shape in SHAPES:
        yield f"{shape.name}, chosen", lambda shape=shape: _chosen(shape, setup)
        for name, backend in BACKENDS.items():
            label = f"{shape.name}, {name}"
            yield label, lambda shape=shape, backend=backend, label=label: _backend(shape, backend, label, setup)
    window = SlidingWindow(64, 60, width=64) if setup.quick else SlidingWindow(197, 147, width=197)
    for way in WAYS if setup.is_cuda else CPU_WAYS:
        yield f"windows, {way}", lambda way=way: _windows(window, way, setup)


def _chosen(shape: Shape, setup: Setup) -> Iterator[Check]:
    """Name the implementation that torch chooses by itself."""
    q, k, v = _drawn(shape.rows, shape.keys, setup, images=2)
    # With a gradient, as in training: the choice depends on it.
    choice = torch._fused_sdp_choice(q, k, v, shape.mask(setup.device))
    names = {backend.value: name for name, backend in BACKENDS.items()}
    yield Check(f"{shape.name}, chosen", "measured", note=names.get(choice, f"number {choice}"))


def _backend(shape: Shape, backend: SDPBackend, label: str, setup: Setup) -> Iterator[Check]:
    mask = shape.mask(setup.device)

    def attend_by_backend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    yield from _compared(label, attend_by_backend, shape.mask("cpu"), shape, setup)


def _windows(window: SlidingWindow, way: str, setup: Setup) -> Iterator[Check]:
    shape = Shape("windows", window.rows, window.keys)
    yield from _compared(f"windows, {way}", attention_of(window, way, setup.device), window.mask(), shape, setup)


def attention_of(window: SlidingWindow, way: str, device: str) -> Attend:
    """Return the one of `WAYS` that is called so, for tensors on `device`."""
    if way == "one mask":
        mask = window.mask(device)
        return lambda q, k, v: attend(q, k, v, mask)
    if way == "flex":
        return partial(attend_by_flex, window=window)
    by_size = {f"blocks of {size}": partial(attend_in_blocks, size=size) for size in (49, 147)}
    return partial(attend_by_streams, window=window, local={**by_size, "flash windows": attend_by_flash}[way])


def _compared(label: str, way: Attend, mask: Tensor | None, shape: Shape, setup: Setup) -> Iterator[Check]:
    """Check results and gradients against float64 on the CPU, then measure time and memory of both directions."""
    few = _drawn(shape.rows, shape.keys, setup, images=2, score=shape.score)
    try:
        found = _results(way, few)
    except RuntimeError as error:
        if not any(words in str(error) for words in _REFUSALS):
            raise
        yield Check(label, "left out", note="this implementation does not take the call")
        return
    q, k, v = (x.detach().cpu().double().requires_grad_() for x in few)
    expected = _results(lambda *inputs: F.scaled_dot_product_attention(*inputs, attn_mask=mask), (q, k, v))
    errors = {name: _error(found[name], expected[name]) for name in expected}
    worst, note = max(errors.values()), ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    yield passed_if(worst < TOLERANCE, label, value=worst, unit="of the largest", note=note)
    many = _drawn(shape.rows, shape.keys, setup, images=setup.size(64, 2))
    work = _both_directions(way, many)
    took = seconds(work, setup.device, count=setup.size(20, 1))
    memory = peak_memory(work, setup.device) / 2**20
    yield Check(label, "measured", 1e3 * took, "ms both ways", f"{memory:.0f} MiB" if memory else "")


def _drawn(rows: int, keys: int, setup: Setup, *, images: int, score: float = 0.0) -> Tensors:
    """Draw queries, keys and values of ViT-B's heads, in bfloat16."""
    heads, width = setup.size(12, 2), 64
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(images, heads, count, width, generator=generator) for count in (rows, keys, keys))
    if score:
        q, k = q + (abs(score) / width**0.5) ** 0.5, k - (abs(score) / width**0.5) ** 0.5
    q, k, v = (x.to(setup.device, torch.bfloat16).requires_grad_() for x in (q, k, v))
    return q, k, v


def _results(way: Attend, inputs: Tensors) -> dict[str, Tensor]:
    found = way(*inputs)
    weights = torch.linspace(-1, 1, found.shape[-1], device=found.device, dtype=found.dtype)
    gradients = torch.autograd.grad((found * weights).sum(), inputs)
    return dict(zip(("output", "dq", "dk", "dv"), (found.detach(), *gradients), strict=True))


def _error(found: Tensor, expected: Tensor) -> float:
    """Return the largest error as a part of the largest number expected; infinite where it is NaN."""
    error = ((found.cpu().double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()
    return error if error == error else float("inf")


def _both_directions(way: Attend, inputs: Tensors) -> Callable[[], object]:
    ones = torch.ones_like(inputs[0])
    return lambda: torch.autograd.grad(way(*inputs), inputs, ones)
