"""How long idle OpenMP threads wait actively; to be called before torch or FAISS is imported."""

import os


def share_cores() -> None:
    """FAISS and torch bring an OpenMP each, whose idle threads would spin on the cores that the other wants.

    They go to sleep, but not at once: a small training step is hundreds of operations a few microseconds apart, and
    waking its threads for each of them made it 1.6 times as slow. Variables that are set already stay.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # about 50 microseconds
