"""Step `nccl`: one process under torchrun: its group, objects, a barrier, DDP, energy, and that it comes to an end."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.gpu_check.checks import Attempt, Check, Setup, passed_if

_SECONDS = 60


def attempts(setup: Setup) -> Iterator[Attempt]:
    yield "torchrun", lambda: _torchrun(setup)


def _torchrun(setup: Setup) -> Iterator[Check]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    done = subprocess.run(
        [*command, "-m", "benchmarks.gpu_check.nccl", setup.device],
        stdout=subprocess.PIPE,
        text=True,
        timeout=_SECONDS,
        env={"OMP_NUM_THREADS": "1", **os.environ},
        check=False,
    )
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    yield passed_if(done.returncode == 0, "ends by itself", note=f"exit code {done.returncode}")
    for name in ("objects", "barrier", "all_reduce", "DDP"):
        yield passed_if(any(line.get(name) for line in said), name)
    energy = next((line["energy"] for line in said if "energy" in line), None)
    if energy is None:
        yield Check("energy", "left out", note="nobody counts it here (NVML, nvidia-ml-py)")
    else:
        yield Check("energy", "measured", 1000 * energy, "mWh of this step")


def worker(device: str) -> None:
    """Say what of torch.distributed works, a line each, in the process that torchrun starts."""
    import torch
    import torch.distributed as dist

    from pipeline.engine.processes import Processes, joined_processes
    from pipeline.training.energy import EnergyMeter

    with joined_processes(device) as processes:
        assert isinstance(processes, Processes)
        energy = EnergyMeter(processes.device)
        held, values = [{"a": 1}], [None]
        dist.broadcast_object_list(held)
        dist.all_gather_object(values, "b")
        _say(objects=held == [{"a": 1}] and values == ["b"])
        dist.barrier()
        _say(barrier=True)
        total = torch.ones(4, device=processes.device)
        dist.all_reduce(total)
        _say(all_reduce=bool((total == 1).all()))
        network = torch.nn.Linear(64, 64).to(processes.device)
        wrapped = torch.nn.parallel.DistributedDataParallel(network)
        wrapped(torch.ones(8, 64, device=processes.device)).sum().backward()
        _say(DDP=bool(network.weight.grad.isfinite().all()))
        _say(energy=energy.watt_hours())
        del wrapped, network


def _say(**values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    worker(sys.argv[1])
