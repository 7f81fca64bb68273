"""Attention on a CPU: both passes in the shapes of MaPeT, its last block and MIM, against torch's own call with a mask.

On one thread, ViT-T's 3 heads. `ours` is what `attend` takes, in bf16 on a processor that multiplies it; `blocks` is
MaPeT's sliding window in blocks of plain views. Windows on a GPU are measured by `gpu_check`.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Measurement, interleaved, median_ratio
from benchmarks.official_mapet import threads
from models.vit.attention import attend
from models.vit.windows import SlidingWindow, attend_by_streams, attend_in_blocks

HEADS, WIDTH = 3, 64
Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def run(*, images: int = 16, rounds: int = 9, window: SlidingWindow | None = None) -> list[Measurement]:
    """Measure ratios of CPU time; `window`: MaPeT's unless told otherwise."""
    window = window or SlidingWindow(197, 147, width=197)
    dtypes = {"fp32": torch.float32}
    if torch.cpu._is_avx512_bf16_supported():
        dtypes["bf16"] = torch.bfloat16
    else:
        print("attention: bf16 is not timed, this processor does not multiply it")
    with threads(1):
        return [item for name, dtype in dtypes.items() for item in _of_dtype(name, dtype, images, rounds, window)]


def _of_dtype(name: str, dtype: torch.dtype, images: int, rounds: int, window: SlidingWindow) -> list[Measurement]:
    mask, blocks = window.mask(), partial(attend_by_streams, window=window, local=attend_in_blocks)
    shapes = {"mapet": mask, "mapet_last": mask[-window.steps :], "mim": None}
    found = []
    for shape, seen in shapes.items():
        rows, keys = (window.first, window.first) if seen is None else seen.shape
        inputs = [torch.randn(images, n, HEADS, WIDTH, dtype=dtype).transpose(1, 2) for n in (rows, keys, keys)]
        calls: dict[str, Call] = {"torch": partial(F.scaled_dot_product_attention, attn_mask=seen)}
        if dtype is torch.bfloat16:
            calls["ours"] = partial(attend, attention_mask=seen)
        if seen is not None:
            calls["blocks"] = blocks
        works = {call: partial(_both_passes, way, [x.requires_grad_() for x in inputs]) for call, way in calls.items()}
        for work in works.values():
            work()  # first allocations
        seconds = {call: [each.cpu for each in times] for call, times in interleaved(works, rounds=rounds).items()}
        against = f"torch: {statistics.median(seconds['torch']):.3g}"
        found += [
            Measurement(
                f"attention.{name}.{shape}.{call}",
                statistics.median(values),
                f"CPU-seconds of both passes, {images} images",
                against,
                median_ratio(values, seconds["torch"]),
            )
            for call, values in seconds.items()
            if call != "torch"
        ]
    return found


def _both_passes(call: Call, inputs: list[Tensor]) -> None:
    found = call(*inputs)
    torch.autograd.grad(found, inputs, torch.ones_like(found))
