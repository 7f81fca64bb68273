"""The processes that train together: one, or as many as torchrun started."""

import gc
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")
# NCCL's own ten minutes are too little for what the first process does alone while the others wait: `by_first`, which
# writes results of megabytes or fetches checkpoints from an object store, and the trainer's checkpoints, whose upload
# is gigabytes over whatever line there is. A process that is gone is noticed at once all the same, by torchrun.
_LONGEST_WAIT = timedelta(hours=4)
_BACKENDS: Mapping[str, str] = {"cuda": "nccl", "cpu": "gloo"}
_BYTES_AT_ONCE = 2**26  # of each process, when they exchange what they have found


@dataclass(frozen=True)
class Processes:
    """This process (`rank`) among `size`; `device` is its own."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module with gradients averaged over the processes."""
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)

    @property
    def shares_norms(self) -> bool:
        """Whether BatchNorm is over the images of all processes; torch can do that on GPUs only."""
        return self.size > 1 and self.device.type == "cuda"

    def with_shared_norms(self, module: nn.Module) -> nn.Module:
        """Return the module with BatchNorm over the images of all processes, where that can be; else each one's own."""
        if not self.shares_norms:
            return module
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return converted

    def share_buffers(self, module: nn.Module) -> None:
        """Give all processes the first one's buffers, such as BatchNorm's running means."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def notes(self, watt_hours: float | None) -> dict[str, Any]:
        """Return how many processes there are, on which device, and the energy that all of them used, if this one's
        device tells."""
        used = self.sum(torch.tensor(watt_hours or 0.0, device=self.device)).item()
        energy = {} if watt_hours is None else {"watt_hours": round(used, 1)}
        return {"processes": self.size, "device": device_name(self.device), **energy}

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, value: Value | None) -> Value:
        """Return what the first process has; the others may pass None."""
        held = [value]
        if self.size > 1:
            dist.broadcast_object_list(held)
        assert held[0] is not None
        return held[0]

    def share(self, rows: np.ndarray) -> np.ndarray:
        """Return this process's part of what all of them work through together."""
        return rows[self.rank :: self.size]

    def joined(self, found: Sequence[Tensor], total: int) -> Tensor:
        """Return what all processes have found of their shares of `total` rows, in the order of the rows, in every
        process.

        As tensors, a piece at a time: gathered as objects, each process would hold the others' pickled as well.

        Args:
            found: [b, ...] of this process's rows in their order, batch by batch, on the CPU; empty without rows.

        Returns:
            [total, ...] on the CPU.
        """
        if self.size == 1:
            return torch.cat(list(found))
        shape, dtype = self.from_first((found[0].shape[1:], found[0].dtype) if found else None)
        own = torch.cat([torch.empty(0, *shape, dtype=dtype), *found])
        whole, most = torch.empty(total, *shape, dtype=dtype), math.ceil(total / self.size)
        at_once = min(most, max(1, _BYTES_AT_ONCE // max(1, shape.numel() * dtype.itemsize)))
        for first in range(0, most, at_once):
            some = own[first : first + at_once]
            piece = torch.zeros(at_once, *shape, dtype=dtype, device=self.device)
            piece[: len(some)] = some.to(self.device)
            pieces = [torch.empty_like(piece) for _ in range(self.size)]
            dist.all_gather(pieces, piece)
            for rank, theirs in enumerate(pieces):
                rows = whole[rank :: self.size][first : first + at_once]
                rows.copy_(theirs[: len(rows)])
        return whole

    def by_first(self, work: Callable[[], object]) -> None:
        """Have the first process do something while the others wait."""
        if self.is_first:
            work()
        self.wait_for_all()

    def gather(self, value: Value) -> list[Value]:
        """Return every process's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Value | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return cast(list[Value], values)

    def wait_for_all(self) -> None:
        if self.size > 1:
            dist.barrier()


def device_name(device: torch.device) -> str:
    """Name a device, for people and for comparing speeds: the model of a GPU, or `CPU`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Join the group that torchrun describes in the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, ...).

    Args:
        device: `cpu`, or `cuda`: of the GPUs each process takes the one of its local rank; or `cuda:1`, of a process
            that is the only one of its node.
    """
    own = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" else device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    # Told its device, NCCL begins at once, and guesses none from the rank.
    known = own if own.type == "cuda" else None
    dist.init_process_group(_BACKENDS[own.type], timeout=_LONGEST_WAIT, device_id=known)
    yield Processes(own, dist.get_rank(), dist.get_world_size())
    # After an error the group is left as it is: NCCL would wait for kernels of processes that will never come.
    gc.collect()  # a network that still averages its gradients would keep gloo's threads running
    dist.destroy_process_group()
