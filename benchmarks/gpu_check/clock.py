"""Time and memory on a device."""

import time
from collections.abc import Callable

import torch

# Dense operations per second in 16 bits by a part of the device's name (NVIDIA's data sheets); the first match counts.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12}


def seconds(work: Callable[[], object], device: str, *, count: int, warm_up: int = 2) -> float:
    """Measure the seconds of one call, as the mean of `count` in a row."""
    for _ in range(warm_up):
        work()
    wait(device)
    started = time.perf_counter()
    for _ in range(count):
        work()
    wait(device)
    return (time.perf_counter() - started) / count


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory(work: Callable[[], object], device: str) -> int:
    """Measure the bytes that a call takes beyond what is held before it; 0 on a CPU."""
    if not device.startswith("cuda"):
        return 0
    wait(device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    wait(device)
    return torch.cuda.max_memory_allocated() - before


def device_peak(name: str) -> float | None:
    """Look up a device's dense operations per second in 16 bits; None: not known."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def share_of_peak(flops: float, device: str) -> str:
    """Compare `flops` per second with what the card can do; empty where that is not known."""
    peak = device_peak(torch.cuda.get_device_name(device)) if device.startswith("cuda") else None
    return f"{flops / peak:.1%} of {peak / 1e12:.0f} TFLOP/s" if peak else ""
