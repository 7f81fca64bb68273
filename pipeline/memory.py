"""Too little memory: how to tell, and inference on halves of a batch that does not fit."""

import gc
import logging
import math
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, Self, TypeVar

import torch

from pipeline.errors import PipelineError

logger = logging.getLogger("mapet.stages")
# torch's allocator has a type for it on a GPU; whoever asks CUDA past it has words of his own.
_SHORTAGES = (
    "can't allocate memory",  # torch on a CPU
    "out of memory",  # the CUDA runtime, NCCL, Triton
    "_status_alloc_failed",  # cuBLAS, cuDNN, cuSPARSE
    "alloc fail",  # FAISS on a GPU
    "std::bad_alloc",  # FAISS on a CPU
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a shortage of memory, the host's or a device's, from any other error, by its type or its words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SHORTAGES)


class Splittable(Protocol):
    """A batch of images."""

    @property
    def places(self) -> int:
        """What is computed at once: images, and empty places that fill a batch up."""

    def split(self, places: int) -> Iterator[Self]:
        """Pieces of at most so many places, in order."""


Piece = TypeVar("Piece", bound=Splittable)
Result = TypeVar("Result")


class Halving(Generic[Piece, Result]):
    """Computes on whole batches, and on halves, quarters, ... from the first one on that does not fit in memory.

    For inference, where a result does not depend on the images beside it; the gradient of a training's batch is not to
    be changed behind anybody's back.
    """

    def __init__(self, compute: Callable[[Piece], Result]) -> None:
        self._compute = compute
        self._most: int | None = None  # images at once; None as long as every batch fitted

    def __call__(self, batch: Piece) -> Iterator[tuple[Piece, Result]]:
        """The pieces of the batch, in order, each with what is computed of it.

        Raises:
            PipelineError: not even a single image fits.
        """
        if self._most is not None and batch.places > self._most:
            for piece in batch.split(self._most):
                yield from self(piece)
            return
        try:
            result = self._compute(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._halve(batch.places)
        else:
            yield batch, result
            return
        # Here, where the error is forgotten, and with it the frames that hold what was computed so far.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        yield from self(batch)

    def _halve(self, images: int) -> None:
        if images == 1:
            raise PipelineError(
                "the device's memory does not suffice for a single image; free some, use a smaller network, or set "
                "settings.device=cpu"
            ) from None
        self._most = math.ceil(images / 2)
        logger.warning(
            "%d images at once do not fit in memory, going on with %d (settings.batch_size=%d starts with that)",
            images,
            self._most,
            self._most,
        )
