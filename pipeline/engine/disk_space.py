"""Whether the disk has room for what a stage will write, asked before long work starts."""

import logging
from pathlib import Path

from pipeline.engine.errors import PipelineError
from storage.files import free_bytes

logger = logging.getLogger("mapet.stages")
_MARGIN = 1.1  # file systems fill badly; records and the next stages need room too


def require_space(folder: Path, needed: int, what: str) -> None:
    """Say what will be needed; raises PipelineError when the disk has less than 1.1 times `needed` bytes free."""
    free = free_bytes(folder)
    logger.info("%s takes %s of disk, %s are free", what, readable_bytes(needed), readable_bytes(free))
    if free < needed * _MARGIN:
        raise PipelineError(
            f"{folder}: {what} needs {readable_bytes(needed * _MARGIN)} of disk, {readable_bytes(free)} are free; make "
            "room, or point MAPET_DATA_ROOT at a larger disk"
        )


def readable_bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
