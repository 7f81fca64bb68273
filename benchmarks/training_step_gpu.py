"""The training steps on a GPU: images per second, memory, and how much of the device's arithmetic is used."""

import statistics
from collections.abc import Mapping
from functools import partial

import torch

from benchmarks.measure import Measurement, interleaved, median_ratio
from benchmarks.official_mapet import OfficialCode
from benchmarks.training_step import ObjectiveStep, Setting, Step, official_step

# Dense bfloat16 operations per second by a part of the device's name (NVIDIA's data sheets); the first match counts.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12}


def on_gpu(
    setting: Setting,
    code: OfficialCode | None,
    *,
    variants: tuple[str, ...] = ("eager", "compiled"),
    count: int = 10,
    rounds: int = 3,
) -> list[Measurement]:
    """Images per second, memory and use of the arithmetic, of MIM's, MaPeT's and the official step, in turns.

    The official masks are drawn beforehand, as if the workers of its loader cost nothing; copying them counts.
    Its arithmetic is counted as that of our MaPeT, which computes the same. Another device is for the tests.
    """
    torch.compiler.reset()
    ours = {
        f"{name}.{variant}": ObjectiveStep(setting, name, compiled=variant == "compiled")
        for name in ("mapet", "mim")
        for variant in variants
    }
    flops = {name: step.flops() / setting.batch for name, step in ours.items()}
    base = first = next(iter(ours))
    steps: dict[str, Step] = {**ours}
    if code:
        steps[base := "official"] = official_step(code, ours[first], keep_masks=True)
        flops[base] = flops[first]
    memory = {name: _gpu_memory(step, setting) for name, step in steps.items()}
    works = {name: partial(_repeat, step, count, setting) for name, step in steps.items()}
    seconds = interleaved(works, rounds=rounds)
    rates = {name: [count * setting.batch / each.wall for each in found] for name, found in seconds.items()}
    return _gpu_measurements(setting, rates, memory, flops, base=base)


def device_peak(name: str) -> float | None:
    """Dense bfloat16 operations per second of a device; None: not known."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def _repeat(step: Step, count: int, setting: Setting) -> None:
    for _ in range(count):
        step()
    if setting.device == "cuda":
        torch.cuda.synchronize()


def _gpu_memory(step: Step, setting: Setting, warm_up: int = 3) -> int:
    """Peak bytes of one step beyond weights and optimizer state, after compiling and choosing algorithms."""
    _repeat(step, warm_up, setting)
    if setting.device != "cuda":
        return 0
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _repeat(step, 1, setting)
    return torch.cuda.max_memory_allocated() - before


def _gpu_measurements(
    setting: Setting,
    rates: Mapping[str, list[float]],
    memory: Mapping[str, int],
    flops: Mapping[str, float],
    *,
    base: str,
) -> list[Measurement]:
    peak = device_peak(torch.cuda.get_device_name()) if setting.device == "cuda" else None
    found = []
    for name, values in rates.items():
        prefix, rate = f"{setting.name}.{name}", statistics.median(values)
        against = f"{base}: {statistics.median(rates[base]):.0f}"
        found.append(Measurement(prefix, rate, "images/s", against, median_ratio(values, rates[base])))
        if memory[name]:
            against, ratio = f"{base}: {memory[base] / 2**30:.2f} GiB", memory[name] / memory[base]
            found.append(Measurement(f"{prefix}.memory", memory[name] / 2**30, "GiB of a step", against, ratio))
        if peak:
            unit = f"of {peak / 1e12:.0f} TFLOP/s dense bf16"
            found.append(Measurement(f"{prefix}.flops", rate * flops[name] / peak, unit))
    return found
