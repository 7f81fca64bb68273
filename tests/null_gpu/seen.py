"""What a process sees of the GPUs, in a file that imports nothing: a worker begins at once."""

import os
from collections.abc import Sequence


def visible_gpus(_: Sequence[int]) -> str:
    """Return them as what gives the process its shards has named them."""
    return os.environ["CUDA_VISIBLE_DEVICES"]
