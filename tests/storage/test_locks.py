"""Locks that processes share: waiting is said, a killed holder frees one, and a file system without them is refused."""

import errno
import fcntl
import multiprocessing
import os
import signal
import threading
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from storage.locks import locked


def refuse() -> None:
    raise AssertionError("nobody else holds it")


def hold(path: Path, held: Event, leave: Event) -> None:
    with locked(path, busy=refuse):
        held.set()
        leave.wait(60)


class Holder:
    """Another process that holds the lock."""

    def __init__(self, path: Path) -> None:
        fork = multiprocessing.get_context("fork")
        held, self.leave = fork.Event(), fork.Event()
        self.process = fork.Process(target=hold, args=(path, held, self.leave))
        self.process.start()
        assert held.wait(60)

    def kill(self) -> None:
        os.kill(self.process.pid or 0, signal.SIGKILL)
        self.process.join()


def test_a_lock_that_another_process_holds_is_waited_for_and_that_is_said_once(tmp_path: Path) -> None:
    path, said = tmp_path / "locks" / "one.lock", []
    holder = Holder(path)

    def busy() -> None:
        said.append("waiting")
        threading.Timer(0.3, holder.leave.set).start()

    with locked(path, busy=busy):
        assert said == ["waiting"]
        assert holder.leave.is_set()
    holder.process.join()


def test_a_lock_is_free_again_once_its_holder_is_killed(tmp_path: Path) -> None:
    holder = Holder(tmp_path / "one.lock")
    with locked(tmp_path / "one.lock", busy=holder.kill):
        assert holder.process.exitcode == -signal.SIGKILL
    with locked(tmp_path / "one.lock", busy=refuse):
        pass


def test_who_does_not_want_to_wait_raises_and_the_holder_keeps_the_lock(tmp_path: Path) -> None:
    holder = Holder(tmp_path / "one.lock")

    def give_up() -> None:
        raise InterruptedError("busy")

    for _ in range(2):
        with pytest.raises(InterruptedError, match="busy"), locked(tmp_path / "one.lock", busy=give_up):
            raise AssertionError("two hold it")
    holder.kill()


def test_a_short_wait_is_not_said(tmp_path: Path) -> None:
    holder = Holder(tmp_path / "one.lock")
    threading.Timer(0.2, holder.leave.set).start()
    with locked(tmp_path / "one.lock", busy=refuse, patience=60):
        assert holder.leave.is_set()
    holder.process.join()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EIO])
def test_a_file_system_without_locks_is_an_error_that_names_the_file(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unable)
    with pytest.raises(OSError, match=os.strerror(number)) as raised, locked(tmp_path / "one.lock", busy=refuse):
        raise AssertionError("a lock that the kernel does not know")
    assert (raised.value.errno, raised.value.filename) == (number, str(tmp_path / "one.lock"))


def test_a_lock_whose_folder_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="locks") as raised, locked(tmp_path / "locks" / "one.lock", busy=refuse):
        raise AssertionError("a lock that is nowhere")
    assert str(raised.value.filename).startswith(str(tmp_path / "locks"))
