"""How many CPU threads a training step gets."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_SMALL = 1_000_000  # parameters


@contextmanager
def threads_for(network: nn.Module) -> Iterator[None]:
    """One thread for a small network, for others what torch has chosen.

    The operations of a small one take microseconds: two threads gain little, and where something else wants a core they
    wait for each other in each of them (seven times slower, measured with the demo's). With one thread sums round
    the same way on every machine, too.
    """
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in network.parameters()) < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
