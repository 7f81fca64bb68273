"""How much energy a GPU used, from its own counter (NVML); nobody counts a CPU's.

Needs `nvidia-ml-py`, which MLflow's system metrics use too.
"""

import torch


class EnergyMeter:
    """Counts from the moment it is made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = _millijoules(device)

    def watt_hours(self) -> float | None:
        """Return the watt-hours of this process's device since then; None where it does not say."""
        now = _millijoules(self._device)
        return None if now is None or self._start is None else (now - self._start) / 3.6e6


def _millijoules(device: torch.device) -> int | None:
    """Return what the GPU has used since its driver was loaded; None where that is not known."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")))
    except pynvml.NVMLError:  # an old GPU, a virtual one, or no permission
        return None
