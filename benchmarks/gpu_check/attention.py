"""Step `attention`: which implementations give right gradients for our shapes, and what each costs.

Reported against other cards: NaN in the gradient of the queries with a mask where a length leaves 64 when divided by
128 (pytorch#196678), and of keys and values (cudnn-frontend#1072).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_check.checks import Attempt, Check, Setup, passed_if
from benchmarks.gpu_check.clock import peak_memory, seconds
from benchmarks.gpu_check.windows import CPU_WAYS, WAYS, Attend, Windows

BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "mem-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "math": SDPBackend.MATH,
}
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


def attempts(setup: Setup) -> Iterator[Attempt]:
    for shape in SHAPES:
        yield f"{shape.name}, chosen", lambda shape=shape: _chosen(shape, setup)
        for name, backend in BACKENDS.items():
            label = f"{shape.name}, {name}"
            yield label, lambda shape=shape, backend=backend, label=label: _backend(shape, backend, label, setup)
    windows = Windows() if not setup.quick else Windows(predicted=60, context=4)
    for way in WAYS if setup.is_cuda else CPU_WAYS:
        yield f"windows, {way}", lambda way=way: _windows(windows, way, setup)


def _chosen(shape: Shape, setup: Setup) -> Iterator[Check]:
    """Name the implementation that torch chooses by itself."""
    q, k, v = _drawn(shape.rows, shape.keys, setup, images=2)
    # With a gradient, as in training: the choice depends on it.
    choice = torch._fused_sdp_choice(q, k, v, shape.mask(setup.device))
    names = {backend.value: name for name, backend in BACKENDS.items()}
    yield Check(f"{shape.name}, chosen", "measured", note=names.get(choice, f"number {choice}"))


def _backend(shape: Shape, backend: SDPBackend, label: str, setup: Setup) -> Iterator[Check]:
    mask = shape.mask(setup.device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    yield from _compared(label, attend, shape.mask("cpu"), shape, setup)


def _windows(windows: Windows, way: str, setup: Setup) -> Iterator[Check]:
    attend, shape = windows.way(way, setup.device), Shape("windows", windows.rows, windows.keys)
    yield from _compared(f"windows, {way}", attend, windows.mask("cpu"), shape, setup)


def _compared(label: str, attend: Attend, mask: Tensor | None, shape: Shape, setup: Setup) -> Iterator[Check]:
    """Check results and gradients against float64 on the CPU, then measure time and memory of both directions."""
    few = _drawn(shape.rows, shape.keys, setup, images=2, score=shape.score)
    try:
        found = _results(attend, few)
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
    work = _both_directions(attend, many)
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


def _results(attend: Attend, inputs: Tensors) -> dict[str, Tensor]:
    found = attend(*inputs)
    weights = torch.linspace(-1, 1, found.shape[-1], device=found.device, dtype=found.dtype)
    gradients = torch.autograd.grad((found * weights).sum(), inputs)
    return dict(zip(("output", "dq", "dk", "dv"), (found.detach(), *gradients), strict=True))


def _error(found: Tensor, expected: Tensor) -> float:
    """Return the largest error as a part of the largest number expected; infinite where it is NaN."""
    error = ((found.cpu().double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()
    return error if error == error else float("inf")


def _both_directions(attend: Attend, inputs: Tensors) -> Callable[[], object]:
    ones = torch.ones_like(inputs[0])
    return lambda: torch.autograd.grad(attend(*inputs), inputs, ones)
