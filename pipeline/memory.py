"""Whether an error says that memory does not suffice: torch has a type for it on a GPU, and a sentence on a CPU."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
