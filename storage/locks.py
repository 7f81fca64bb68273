"""Locks between processes: one file each, held by the kernel, so that it is free when its holder is killed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_FOR_EVER = -1.0


@contextmanager
def locked(path: Path, *, busy: Callable[[], None], patience: float = 0.0) -> Iterator[None]:
    """Hold the lock at `path`, which is made with its folder, while the block runs.

    `busy()` is called once if somebody else still holds it after `patience` seconds. It says so, and this waits as long
    as it takes; or it raises.

    Raises:
        OSError: the file cannot be written, or its file system knows no locks; the error names it.
    """
    # Where the file system knows no locks, filelock would take the file's existence for one, which outlives a kill.
    lock = FileLock(path, fallback_to_soft=False)
    if not _acquire(lock, patience):
        busy()
        _acquire(lock, _FOR_EVER)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, seconds: float) -> bool:
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, lock.lock_file) from error  # the kernel tells a number only
    return True
