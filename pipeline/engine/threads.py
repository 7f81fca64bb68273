"""How many threads compute, and how idle ones wait. torch is imported where it is needed: `share_cores` comes before
it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

SMALL = 1_000_000  # numbers that a network holds: weights, and a codebook beside them


def share_cores() -> None:
    """Share the cores: FAISS and torch bring an OpenMP each, whose idle threads would spin on the cores that the other
    wants. To be called before either is imported.

    They go to sleep, but not at once: a small training step is hundreds of operations a few microseconds apart, and
    waking its threads for each of them made it 1.6 times as slow. Variables that are set already stay.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # about 50 microseconds


def threads_of_each(processes: int) -> int:
    """Return how many threads each of so many processes (0 counts as 1) gets, so that together they have one for each
    core."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, processes))


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread, for the same weights whatever the number of cores: gradients are sums, and sums over two
    threads round differently."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def threads_for(network: "nn.Module") -> Iterator[None]:
    """Compute with one thread for a small network, for others with what torch has chosen.

    The operations of a small one take microseconds: two threads gain little, and where something else wants a core they
    wait for each other in each of them (seven times slower in training, and fifty in encoding images, measured with the
    demo's). With one thread sums round the same way on every machine, too.
    """
    if sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers())) >= SMALL:
        yield
        return
    with one_thread():
        yield
