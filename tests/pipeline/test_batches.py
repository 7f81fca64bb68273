"""Loading ahead in threads: in order, bounded, and ended by errors, Ctrl-C and whoever wants no more."""

import signal
import threading
import time

import pytest

from pipeline.engine.batches import load_in_workers
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.shared_memory import Ahead, loading_ahead
from storage.errors import StoreInvalid

CPU = Settings(device="cpu", workers=2)
AHEAD = Ahead(workers=2, images=1, pieces=3, in_threads=True)


def loaders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_threads_of_this_process_load_in_order_and_no_further_ahead_than_said() -> None:
    begun: list[int] = []

    def load(key: int) -> tuple[int, str]:
        begun.append(key)
        time.sleep(0.001 * (key % 3))  # later ones are done before earlier ones
        return key, threading.current_thread().name

    loading = load_in_workers(load, range(40), CPU, AHEAD)
    for place in range(40):
        key, name = next(loading)
        assert key == place
        assert name.startswith("loader")
        assert max(begun) < place + AHEAD.workers * AHEAD.pieces
    assert next(loading, None) is None
    assert loaders() == []


def test_who_wants_no_more_leaves_no_thread_behind() -> None:
    loading = load_in_workers(abs, range(100), CPU, AHEAD)
    assert next(loading) == 0
    assert loaders()
    del loading
    assert loaders() == []


@pytest.mark.parametrize("error", [PipelineError("of an image"), StoreInvalid("of a row"), OSError(5, "of the disk")])
def test_an_error_in_a_thread_comes_where_its_batch_would_have(error: Exception) -> None:
    def load(key: int) -> int:
        if key == 3:
            raise error
        return key

    loading = load_in_workers(load, range(100), CPU, AHEAD)
    assert [next(loading) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)) as raised:
        next(loading)
    assert raised.value is error
    assert loaders() == []


def test_ctrl_c_ends_what_threads_load() -> None:
    def load(key: int) -> int:
        if key == 3:
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.05)
        return key

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            list(load_in_workers(load, range(10_000), CPU, AHEAD))
    finally:
        signal.signal(signal.SIGINT, before)
    assert loaders() == []


def test_without_workers_this_thread_loads_when_it_is_asked() -> None:
    settings = Settings(device="cpu", workers=0)
    loading = load_in_workers(
        lambda _: threading.current_thread(), range(2), settings, loading_ahead(1, settings, in_threads=True)
    )
    assert list(loading) == [threading.current_thread()] * 2
