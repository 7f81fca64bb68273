"""What holds while a process computes its part of a stage: which device is meant, and what is said if memory runs out.

Entered once by whoever begins to compute: the stage's own process, a worker that encodes images for it, and each of the
processes that train together.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.engine.batches import lost_workers_explained
from pipeline.engine.devices import as_current_device
from pipeline.engine.memory import FREE_MEMORY, give_memory_back, shortage_explained

_LESS = f"{FREE_MEMORY}, or set settings.batch_size, settings.micro_batch_size or settings.workers to less"


@contextmanager
def computing(what: str, device: str) -> Iterator[None]:
    """Compute on `device`, as `Settings.torch_device` names it, with the memory that nobody in this process needs.

    Args:
        what: what is computed, in words for people.

    Raises:
        PipelineError: memory did not suffice, or a worker that loads images died.
    """
    give_memory_back()  # also what a part that failed has left
    with lost_workers_explained(), shortage_explained(what, _LESS), as_current_device(device):
        yield
    give_memory_back()
