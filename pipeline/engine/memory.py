"""Too little memory: how to tell, what to say, and inference on halves of a batch that does not fit."""

import errno
import gc
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, Self, TypeVar

from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.words import counted

logger = logging.getLogger("mapet.stages")
# torch's allocator has a type for it on a GPU; whoever asks CUDA past it has words of his own.
_SHORTAGES = (
    "can't allocate memory",  # torch on a CPU
    "out of memory",  # the CUDA runtime, NCCL, Triton
    "_status_alloc_failed",  # cuBLAS, cuDNN, cuSPARSE
    "alloc fail",  # FAISS on a GPU
    "std::bad_alloc",  # FAISS on a CPU
)

_OF_GPUS = ("cuda", "cublas", "cudnn", "cusparse", "nccl", "triton")
FREE_MEMORY = "free some (nvidia-smi shows who holds a GPU's)"
SMALLER_NETWORK = f"{FREE_MEMORY}, choose a smaller network, or set settings.device to another"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a shortage of memory, the host's or a device's, from any other error, by its type or its words."""
    if isinstance(error, MemoryError) or _is_of_torch(error):
        return True
    if isinstance(error, OSError):  # of a fork or a memory map
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SHORTAGES)


@contextmanager
def shortage_explained(what: str, remedy: str) -> Iterator[None]:
    """Turn a shortage of memory into a sentence: that there is too little for `what`, and a `remedy`.

    Contexts of this kind may stand inside each other: the innermost, which knows best, says it.

    Raises:
        PipelineError: memory did not suffice.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise PipelineError(f"{_whose(error)} memory does not suffice for {what}{_figures(error)}; {remedy}") from None


def give_memory_back() -> None:
    """Hand over to the GPU's other users what this process's torch keeps for itself without using it.

    FAISS is one of them, in this process: what torch has cached, FAISS cannot have.
    """
    gc.collect()  # networks are full of cycles, and hold their tensors until these are found
    torch = _torch()
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _torch() -> Any:
    """Return torch if this process has imported it; if it has not, no error and no memory can be torch's."""
    return sys.modules.get("torch")


def _is_of_torch(error: BaseException) -> bool:
    torch = _torch()
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _whose(error: BaseException) -> str:
    on_gpu = _is_of_torch(error) or any(name in str(error).lower() for name in _OF_GPUS)
    return "the GPU's" if on_gpu else "this machine's"


def _figures(error: BaseException) -> str:
    """Return how much was wanted, and how much there is, where torch's allocator says so."""
    found = re.search(r"Tried to allocate .*? is free", str(error))
    return f" ({found[0].replace('Tried', 'tried').replace('. GPU', ', GPU')})" if found else ""


def step_needs(images: int, settings: Settings) -> tuple[str, str]:
    """Return what of a step may not fit in memory, and which of the settings that are left would make it fit."""
    ways = []
    if images > 1:
        ways.append("settings.micro_batch_size to less (the step keeps its batch size)")
    if not settings.gradient_checkpointing:
        ways.append("settings.gradient_checkpointing=true")
    if not settings.head_rows:
        ways.append("settings.head_rows=1024 (in pre-training)")
    return f"{counted(images, 'image')} at once", f"set {', or '.join(ways)}" if ways else SMALLER_NETWORK


class Splittable(Protocol):
    """A batch of images."""

    @property
    def padded_size(self) -> int:
        """What is computed at once: images, and empty places that fill a batch up."""

    def split(self, padded_size: int) -> Iterator[Self]:
        """Yield pieces of at most so many places, in order."""


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
        """Yield the pieces of the batch, in order, each with what is computed of it.

        Raises:
            PipelineError: not even a single image fits.
        """
        if self._most is not None and batch.padded_size > self._most:
            for piece in batch.split(self._most):
                yield from self(piece)
            return
        try:
            result = self._compute(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._halve(batch.padded_size)
        else:
            yield batch, result
            return
        # Here, where the error is forgotten, and with it the frames that hold what was computed so far.
        give_memory_back()
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
