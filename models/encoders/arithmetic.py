"""What image encoders take, and in which numbers they compute: the same for features, tokens and zero-shot."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from models.errors import ModelError

AUTOCAST = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def require_pixels(images: Tensor, size: int, *, name: str) -> None:
    """Raise ModelError, naming the encoder, for anything but 8-bit squares of that size, uint8 [B, 3, size, size]."""
    if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
        came = f"{images.dtype} {list(images.shape)}"
        raise ModelError(f"{name}: came {came}, expected torch.uint8 [B, 3, {size}, {size}] (preprocessed)")


def normalised(images: UInt8[Tensor, "B 3 side side"], mean: Tensor, std: Tensor) -> Float[Tensor, "B 3 side side"]:
    """Normalise 8-bit pixels by `mean` and `std`, [3, 1, 1]; channels come last on a GPU, which is faster there."""
    pixels = (images.float() / 255 - mean) / std
    return pixels.contiguous(memory_format=torch.channels_last) if pixels.is_cuda else pixels


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Compute with the arithmetic that `ClipOptions.precision` means on a device, whatever autocast is around it.

    cuDNN rounds the inputs of float32 convolutions to TF32 unless told otherwise, and so do matrix products where a
    user has allowed it: `fp32` would not be float32.

    `torch.backends.cudnn.benchmark` stays off, though convolutions of one shape, such as RN50x64's, are what it is for.
    It takes the algorithm that wins a race as the process begins, the next time perhaps another, which rounds
    otherwise: what is stored would not be the same bytes in every run, nor in every worker of one.
    """
    on_gpu = device.type == "cuda"
    dtype = AUTOCAST[precision] if on_gpu or precision == "bf16" else None
    with torch.autocast("cuda" if on_gpu else "cpu", dtype=dtype, enabled=dtype is not None), no_tf32():
        yield


@contextmanager
def no_tf32() -> Iterator[None]:
    """Compute in float32 what is float32, forward and backward."""
    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
