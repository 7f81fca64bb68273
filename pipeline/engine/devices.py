"""Which device this machine computes on, and a word where that is not what its owner would expect."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.engine.errors import PipelineError

if TYPE_CHECKING:
    import torch

    from models.vit.attention import Kernels

logger = logging.getLogger("mapet.stages")
_FALLEN_BACK = "settings.device=auto: computing on the CPU, as %s"
_DRIVER = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))  # the last of WSL


@lru_cache  # so that it is said once
def chosen_device(wanted: str) -> str:
    """Return the device that `settings.device` asks for, as torch calls it. Imports torch.

    `auto` is the first GPU, or the CPU. If there is a driver, that is said at once and with the reason: a machine with
    a GPU that torch cannot use would be a hundred times slower in silence. If there is none, `say_device` says it.

    Raises:
        PipelineError: there is no such device here, or none that this pipeline knows.
    """
    import torch

    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda"
        if _has_driver():
            logger.warning(_FALLEN_BACK, _why_no_gpu())
        return "cpu"
    device = _parsed(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        why = f" ({_why_no_gpu()})" if not found else ""
        raise PipelineError(
            f"settings.device={wanted}: torch finds {found} GPU{'' if found == 1 else 's'} here{why}; set it to cpu or "
            "auto"
        )
    return wanted


@contextmanager
def as_current_device(device: str) -> Iterator[None]:
    """Make `device`, as `chosen_device` returns it, the one that this thread means by "the GPU".

    FAISS takes torch's stream of the current device wherever the tensors are; streams, pinned memory and `torch.cuda.*`
    without a device go by it too. CUDA keeps it for each thread by itself. `cuda` without a number is the current one:
    the first, or the one that a process took which trains together with others.
    """
    if not device.startswith("cuda:"):
        yield
        return
    import torch

    with torch.cuda.device(device):
        yield


def attend_with(kernels: "Kernels", device: str) -> None:
    """Have this process compute attention as `settings.attention` says; on a CPU that is by masks or in blocks."""
    from models.vit.attention import choose_attention, choose_way

    if device.startswith("cuda"):
        if kernels == "flex":
            _require_triton()
        _say_attention(kernels, device)
        choose_attention(kernels)
    else:
        choose_way(kernels if kernels == "blocks" else "auto")


def _require_triton() -> None:
    """Refuse FlexAttention where it cannot be compiled: uncompiled it is slower than a mask. Raises PipelineError."""
    from torch.utils._triton import has_triton

    if not has_triton():
        raise PipelineError(
            "settings.attention=flex is compiled by Triton, which is not installed here or knows no such GPU; set it "
            "to auto"
        )


@lru_cache  # so that it is said once
def _say_attention(kernels: "Kernels", device: str) -> None:
    if kernels != "cudnn":
        return
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    if major not in (9, 10):
        logger.warning(
            "settings.attention=cudnn: torch takes cuDNN's kernels for attention on GPUs of compute capability 9 and "
            "10, this one has %d.%d and computes as with settings.attention=auto",
            *(major, minor),
        )


@lru_cache  # so that it is said once
def say_device(wanted: str) -> None:
    """Say before long work that `auto` found no GPU, where `chosen_device` has not."""
    if wanted == "auto" and chosen_device(wanted) == "cpu" and not _has_driver():
        logger.info(_FALLEN_BACK, _why_no_gpu())


def require_gpus(device: str, processes: int) -> None:
    """Refuse more processes than there are GPUs for them, one each.

    Raises:
        PipelineError: there are fewer GPUs, or the device names a single one.
    """
    if not device.startswith("cuda") or processes == 1:
        return
    import torch

    if ":" in device:
        raise PipelineError(
            f"settings.device={device} names one GPU, settings.processes={processes} want one each; set "
            "settings.device=cuda, and choose among the GPUs with CUDA_VISIBLE_DEVICES"
        )
    found = torch.cuda.device_count()
    if processes > found:
        raise PipelineError(
            f"settings.processes={processes}: torch finds {found} GPU{'' if found == 1 else 's'} here, and each "
            f"process takes one; set it to {found} or less"
        )


def visible_gpus(device: str) -> tuple[str, ...]:
    """Return the GPUs that processes of this machine can share out, as `CUDA_VISIBLE_DEVICES` would name them.

    Empty where `device` is the CPU, or names one GPU, which would be another one in a process that sees only some.
    """
    if device != "cuda":
        return ()
    import torch

    count = torch.cuda.device_count()
    named = tuple(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    return named[:count] or tuple(str(gpu) for gpu in range(count))


@lru_cache  # so that it is said once
def say_idle_gpus(device: str, remedy: str) -> None:
    """Say that one GPU works and how many do not, where `device` does not name it; `remedy` is what puts all to
    work."""
    if device != "cuda":
        return
    import torch

    if (found := torch.cuda.device_count()) > 1:
        logger.warning("one of this machine's %d GPUs is used; %s uses all", found, remedy)


@lru_cache  # so that it is said once
def say_gpus(at_work: int, *, wanted: int) -> None:
    """Say on how many GPUs images are encoded; `wanted`: on how many they are where there are shards enough."""
    import torch

    logger.info("images are encoded by %d processes, a GPU each", at_work)
    if (found := torch.cuda.device_count()) > wanted:
        uses_all = f"settings.processes={found} uses all"
        logger.warning("%d of this machine's %d GPUs encode images; %s", wanted, found, uses_all)


def _parsed(wanted: str) -> "torch.device":
    import torch

    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise PipelineError(f"settings.device={wanted!r}: expected cpu, cuda, cuda:1, ... or auto")
    return device


def _has_driver() -> bool:
    return any(path.exists() for path in _DRIVER) or shutil.which("nvidia-smi") is not None


def _why_no_gpu() -> str:
    """Return why torch finds no GPU: none is there, this build of torch knows none, one is hidden, or the driver is
    wrong."""
    import torch

    if not _has_driver():
        return "no NVIDIA driver is installed here"
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA; install one that is built with it"
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None and not visible.strip():
        return "CUDA_VISIBLE_DEVICES is empty, which hides all GPUs"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"torch, built for CUDA {torch.version.cuda}, cannot use the driver: {str(error).partition('. ')[0]}"
    return "torch sees none of the driver's GPUs"
