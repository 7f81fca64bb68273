"""How much is loaded ahead: worker processes hand images over in shared memory, of which a container may have little.

What is on its way is bounded in bytes, however large a step and however many workers: a batch travels in pieces, and
as many of these are under way as fit in

    min(1 GiB, half of what is free in /dev/shm) / processes that train at once

Half, because images to validate on are loaded while those to train on wait. Threads hand nothing over: for them the
first bound alone holds, of memory of this process.
"""

import logging
import shutil
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings

logger = logging.getLogger("mapet.stages")
SHARED_MEMORY = Path("/dev/shm")  # nosec B108 (only its size is asked)
REMEDY = "make it larger (docker run --shm-size=8g, or shm_size in compose)"
MOST_BYTES = 1 << 30  # three steps of the paper's 2048 images
PIECE_BYTES = 16 << 20  # a hundred images: enough to make the cost of handing over small
_MOST_PIECES = MOST_BYTES // PIECE_BYTES  # also of small images: each holds files open
_FEW = 16  # images of a worker on their way; with less it often waits


@dataclass(frozen=True)
class Ahead:
    """What is loaded ahead.

    Attributes:
        workers: processes that load, or threads; 0: this one does, when it is asked.
        images: of a piece, at most.
        pieces: of each worker, under way at once.
        in_threads: whether threads load, for what leaves the interpreter free meanwhile.
    """

    workers: int
    images: int
    pieces: int
    in_threads: bool = False


def loading_ahead(image_bytes: int, settings: Settings, *, in_threads: bool = False) -> Ahead:
    """Decide how much to load ahead of images that take `image_bytes` each.

    Where there is little room, pieces are smaller and workers fewer, and that is said once.

    Raises:
        PipelineError: not a single image fits.
    """
    wanted = settings.decoding_processes
    if not wanted:
        return Ahead(workers=0, images=sys.maxsize, pieces=0)
    bound = MOST_BYTES // settings.loading_together
    room = max(bound, image_bytes) if in_threads else min(bound, _free_bytes() // 2 // settings.loading_together)
    workers = min(wanted, room // image_bytes)
    if not workers:
        raise PipelineError(f"{too_little_room()}, or set settings.workers=0")
    half = room // (2 * workers)  # of two pieces one is on its way while the worker loads the other
    # Threads hand nothing over: batches of theirs need no pieces, which a CPU puts together more slowly than it reads.
    images = max(1, (half if in_threads else min(PIECE_BYTES, half)) // image_bytes)
    pieces = min(room // (workers * images * image_bytes), max(2, _MOST_PIECES // workers))
    if room < bound and workers * images * pieces < wanted * _FEW:
        _say_slow()
    return Ahead(workers, images, pieces, in_threads)


def too_little_room() -> str:
    """Return a sentence's beginning, with what to do about it."""
    total, _, free = shutil.disk_usage(SHARED_MEMORY)
    return (
        f"the processes that load images hand them over in {SHARED_MEMORY}, which has too little room "
        f"({free >> 20} of {total >> 20} MiB are free now); {REMEDY}"
    )


def _free_bytes() -> int:
    """Return the free bytes; without the folder, as on macOS, shared memory is no file system that could be full."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 2 * MOST_BYTES


@lru_cache(maxsize=1)
def _say_slow() -> None:
    total, _, free = shutil.disk_usage(SHARED_MEMORY)
    logger.warning(
        "%s has little room (%d of %d MiB are free): fewer images are loaded ahead, which may be slow; %s",
        *(SHARED_MEMORY, free >> 20, total >> 20, REMEDY),
    )
