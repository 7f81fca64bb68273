"""Step `machine`: driver, card, libraries, and how fast numbers get there."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.gpu_check.checks import Attempt, Check, Setup, passed_if
from benchmarks.gpu_check.clock import seconds, share_of_peak

# What the pipeline needs, by the names under which packages are installed.
PACKAGES = (
    *("torch", "torchvision", "timm", "open_clip_torch", "numpy", "pillow", "pydantic", "pydantic-settings"),
    *("jaxtyping", "safetensors", "zarr", "pyarrow", "google-crc32c", "fsspec", "psutil", "scikit-learn", "matplotlib"),
    *("jinja2", "rich", "pyyaml", "mlflow", "prefect", "nvidia-ml-py", "pytest", "beartype", "hypothesis"),
)
SHARED_MEMORY = Path("/dev/shm")  # nosec B108 (only its size is asked)
_IMPORTS = """
import {first}, {second}
import faiss, faiss.contrib.torch_utils, torch
rows = torch.randn(4096, 32).to("{device}")
index = faiss.GpuIndexFlatL2(faiss.StandardGpuResources(), 32) if rows.is_cuda else faiss.IndexFlatL2(32)
index.add(rows[:100])
found = index.search(rows, 1)[1][:, 0].cpu()
nearest = torch.cdist(rows.double(), rows[:100].double()).argmin(1).cpu()
print(int((found != nearest).sum()))
"""


def attempts(setup: Setup) -> Iterator[Attempt]:
    yield "card", lambda: _card(setup)
    yield "cuDNN", lambda: iter([Check("cuDNN", "measured", note=str(torch.backends.cudnn.version()))])
    yield "packages", _packages
    yield "faiss", lambda: _faiss(setup)
    for first, second in (("torch", "faiss"), ("faiss", "torch")):
        yield f"{first}, then {second}", lambda order=(first, second): _imported(*order, setup)
    yield "host", _host
    yield "copies", lambda: _copies(setup)
    yield "matrix product", lambda: _product(setup)


def _card(setup: Setup) -> Iterator[Check]:
    if not setup.is_cuda:
        yield Check("card", "left out", note="the CPU is checked")
        return
    facts = torch.cuda.get_device_properties(setup.device)
    known = torch.cuda.get_arch_list()
    wanted = f"sm_{facts.major}{facts.minor}"
    # Machine code of the same major version runs, and PTX is compiled by the driver.
    runs = any(name.startswith((f"sm_{facts.major}", "compute_")) for name in known)
    yield Check(
        "card", "measured", facts.total_memory / 2**30, "GiB", f"{facts.name}, {torch.cuda.device_count()} seen"
    )
    yield passed_if(runs, "architecture", note=f"{wanted}; torch is built for {', '.join(known)}")
    yield passed_if(torch.cuda.is_bf16_supported(), "bfloat16")


def _packages() -> Iterator[Check]:
    have, missing = {}, []
    for name in PACKAGES:
        try:
            have[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    yield Check("packages", "measured", len(have), "installed", ", ".join(f"{k} {v}" for k, v in have.items()))
    if missing:
        yield Check("missing packages", "left out", note=f"not installed: {', '.join(missing)}")


def _faiss(setup: Setup) -> Iterator[Check]:
    import faiss

    if not setup.is_cuda:
        yield Check("faiss", "measured", note=f"{faiss.__version__}, {faiss.get_compile_options().strip()}")
        return
    if not hasattr(faiss, "StandardGpuResources"):
        yield Check("faiss", "left out", note="needs faiss-gpu; faiss-cpu is installed")
        return
    found, wanted = faiss.get_num_gpus(), torch.cuda.device_count()
    yield passed_if(found == wanted, "faiss", value=found, unit="GPUs", note=f"faiss-gpu {faiss.__version__}")


def _imported(first: str, second: str, setup: Setup) -> Iterator[Check]:
    """Check that both work when imported in this order: each brings a CUDA runtime of its own."""
    import faiss

    if setup.is_cuda and not hasattr(faiss, "StandardGpuResources"):
        yield Check(f"{first}, then {second}", "left out", note="needs faiss-gpu; faiss-cpu is installed")
        return
    code = _IMPORTS.format(first=first, second=second, device=setup.device)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or [""]
    note = f"{said[-1]} of 4096 rows at another centroid" if done.returncode == 0 else said[-1]
    yield passed_if(done.returncode == 0 and said[-1] == "0", f"{first}, then {second}", note=note)


def _host() -> Iterator[Check]:
    yield Check("host cores", "measured", len(os.sched_getaffinity(0)), "cores")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Check("host memory", "measured", memory / 2**30, "GiB")
    total, _, free = shutil.disk_usage(SHARED_MEMORY)
    yield Check("shared memory", "measured", total / 2**30, "GiB", f"{free / 2**30:.2f} GiB free")


def _copies(setup: Setup) -> Iterator[Check]:
    """Measure how fast 128 images of 224 pixels in 8 bits are copied."""
    images = torch.zeros(setup.size(128, 2), 3, 224, 224, dtype=torch.uint8)
    for name, host in (("pageable", images), ("pinned", images.pin_memory() if setup.is_cuda else images)):
        took = seconds(lambda host=host: host.to(setup.device, non_blocking=True, copy=True), setup.device, count=20)
        yield Check(f"copy to the device, {name}", "measured", images.nbytes / took / 1e9, "GB/s")


def _product(setup: Setup) -> Iterator[Check]:
    side = setup.size(8192, 64)
    left, right = (torch.randn(side, side, device=setup.device, dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * side**3 / seconds(lambda: left @ right, setup.device, count=setup.size(20, 1))
    note = share_of_peak(flops, setup.device)
    yield Check(f"bf16 product of {side}", "measured", flops / 1e12, "TFLOP/s", note)
