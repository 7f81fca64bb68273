"""Loader workers hand images over in /dev/shm. Where that is small, less is loaded ahead, or a run ends in a sentence.
It never waits."""

import errno
import logging
import os
import shutil
import signal
import threading
import time
from typing import Any

import pytest
import torch

from pipeline.engine.batches import load_in_workers
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.shared_memory import MOST_BYTES, SHARED_MEMORY, loading_ahead
from tests.pipeline.small_shared_memory import TOO_LITTLE, needs_mount, with_shared_memory

MIB = 1 << 20


def load(count: int, size: int, *, said_to_be: int, pause: float = 0.0) -> str:
    """Loads images of that size in two workers; then says how many came, how much room they took at most before the
    first was let go of, and what was logged."""

    def image(_: int) -> torch.Tensor:
        return torch.ones(size, dtype=torch.uint8)

    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mapet.stages").addHandler(handler)
    settings, taken, came = Settings(workers=2, device="cpu"), 0, 0
    try:
        for _ in load_in_workers(image, range(count), settings, loading_ahead(said_to_be, settings)):
            time.sleep(0 if came else pause)
            taken, came = max(taken, shutil.disk_usage(SHARED_MEMORY).used), came + 1
    except PipelineError as error:
        return str(error)
    return f"{came} images, {taken} bytes; {' '.join(logged)}"


@needs_mount
@pytest.mark.parametrize(("room", "image"), [(1, 2), (12, 100), (200, 150)])
def test_what_is_larger_than_it_was_said_to_be_ends_the_run_in_a_sentence(room: int, image: int) -> None:
    said = with_shared_memory(room, load, 10, image * MIB, said_to_be=1)
    assert said.startswith(TOO_LITTLE)
    assert f"of {room} MiB" in said
    assert "docker run --shm-size=8g" in said
    assert "\n" not in said


class HandedOver:
    """What its worker dies of while it hands it over."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _take, (os.getpid(),)


def _take(worker: int) -> None:
    """Raise what a broken connection does, an instant before the worker ends, as when shared memory is full."""
    threading.Timer(0.3, os.kill, (worker, signal.SIGBUS)).start()
    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


def test_a_worker_that_dies_while_it_hands_something_over_is_a_sentence() -> None:
    settings = Settings(workers=1, device="cpu")
    with pytest.raises(PipelineError, match=f"{TOO_LITTLE}.*what is done is kept"):
        list(load_in_workers(lambda _: HandedOver(), range(3), settings, loading_ahead(1, settings)))


@needs_mount
def test_at_most_half_of_the_room_is_taken_ahead() -> None:
    said = with_shared_memory(12, load, 40, MIB // 4, said_to_be=MIB // 4, pause=3)
    assert said.startswith("40 images, ")
    assert MIB <= int(said.split()[2]) <= 6 * MIB + MIB // 4  # and the one that is looked at
    assert said.endswith("docker run --shm-size=8g, or shm_size in compose)")


def load_twice(count: int, size: int, *, said_to_be: int) -> str:
    return load(count, size, said_to_be=said_to_be) + load(count, size, said_to_be=said_to_be)


@needs_mount
def test_where_images_of_all_workers_do_not_fit_there_are_fewer_and_it_is_said_once() -> None:
    said = with_shared_memory(1, load_twice, 5, 300_000, said_to_be=300_000)
    assert said.count("5 images") == 2
    assert said.count("fewer images are loaded ahead, which may be slow") == 1


@needs_mount
def test_where_not_one_image_fits_none_is_loaded() -> None:
    said = with_shared_memory(1, load, 5, MIB, said_to_be=MIB)
    assert said.startswith(TOO_LITTLE)
    assert said.endswith("or set settings.workers=0")


@pytest.mark.parametrize("image", [1, 5_000, 3 * 224**2, 12 * MIB])
@pytest.mark.parametrize("workers", [1, 16, 64])
@pytest.mark.parametrize("processes", [1, 8])
@pytest.mark.parametrize("in_threads", [False, True])
def test_what_is_loaded_ahead_is_bounded_whatever_the_workers(
    image: int, workers: int, processes: int, in_threads: bool
) -> None:
    settings = Settings(workers=workers, processes=processes, device="cpu")
    ahead = loading_ahead(image, settings, in_threads=in_threads)
    assert ahead.in_threads == in_threads
    assert 1 <= ahead.workers <= workers
    assert ahead.pieces >= 1
    assert ahead.workers * ahead.pieces * ahead.images * image * processes <= MOST_BYTES
