"""A function to be watched from another process; alone in its file, so that this process imports little."""

import time

import numpy as np


def hold(size: int) -> int:
    """Hold `size` bytes for longer than the time between two looks at a family of processes."""
    held = np.ones(size, np.uint8)
    time.sleep(0.7)
    return len(held)
