"""`python -m benchmarks.gpu_check.card DEVICE`: says in JSON which card, driver, torch, CUDA and commit this is."""

import json
import shutil
import subprocess
import sys


def main(device: str) -> None:
    import torch

    is_cuda = device.startswith("cuda")
    card = torch.cuda.get_device_name(device) if is_cuda else "CPU"
    facts = {"card": card, "driver": driver() if is_cuda else "", "torch": torch.__version__}
    print(json.dumps({**facts, "cuda": torch.version.cuda or "", "commit": _commit()}))


def _commit() -> str:
    try:
        from benchmarks.measure import commit
    except ModuleNotFoundError:
        return "unknown"
    return commit()


def driver() -> str:
    """Ask for the version of NVIDIA's driver; empty where nothing tells it."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else ""


if __name__ == "__main__":
    main(*sys.argv[1:])
