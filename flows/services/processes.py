"""Processes that outlive the command that started them, and how they are recognised later.

A recorded pid says little: after the process has died, another one may have got it. Comparing the time at which the
process was created fails when the clock is set. So every process of a service carries the service's name in its
environment, `MAPET_SERVICE=<folder>/<name>`, which its children inherit: that is what is looked for. It also finds flow
runs whose worker was killed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import BaseModel, TypeAdapter

from pipeline.engine.errors import PipelineError
from storage.locks import locked

_MARK = "MAPET_SERVICE"


@dataclass(frozen=True)
class Service:
    """What is to run: `python -m words...`."""

    name: str
    words: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path  # to run in
    port: int | None = None
    port_setting: str = ""  # environment variable that changes it


class Started(BaseModel, frozen=True):
    """A service as it was started; an entry of services.json."""

    name: str
    pid: int
    port: int | None
    command: list[str]
    log: Path
    started: datetime

    def is_alive(self, folder: Path) -> bool:
        """Tell whether the process with this pid is still the one that was started, and no zombie."""
        try:
            return _mark_of(psutil.Process(self.pid)) == _mark(folder, self.name)
        except psutil.NoSuchProcess:
            return False


_RECORDS = TypeAdapter(list[Started])


class ServiceFolder:
    """`<data root>/services`: who was started (services.json), and one log file for each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def records(self) -> dict[str, Started]:
        """Read what was started, by name and in that order."""
        try:
            text = self._file.read_bytes()
        except FileNotFoundError:
            return {}
        return {one.name: one for one in _RECORDS.validate_json(text)}

    def alive(self) -> dict[str, Started]:
        return {name: one for name, one in self.records().items() if one.is_alive(self.path)}

    def log(self, name: str) -> Path:
        """Name a service's log where the data root is now, wherever it was when the service was started."""
        return self.path / f"{name}.log"

    def start(self, service: Service) -> Started:
        """Start a process in a session of its own: it gets no Ctrl-C of this terminal and survives its end."""
        log = self.log(service.name)
        command = [sys.executable, "-m", *service.words]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=service.folder,
                env={**service.environment, _MARK: _mark(self.path, service.name)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = Started(
            name=service.name, pid=process.pid, port=service.port, command=command, log=log, started=datetime.now(UTC)
        )
        self._write({**self.records(), service.name: started})
        return started

    def forget(self, *names: str) -> None:
        self._write({name: one for name, one in self.records().items() if name not in names})

    def processes(self, *names: str) -> list[psutil.Process]:
        """Find every process of these services: those that were started, descendants, and what they left behind."""
        marks = {_mark(self.path, name) for name in names}
        return [process for process in psutil.process_iter() if _mark_of(process) in marks]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock meanwhile.

        Raises:
            PipelineError: another command is starting or stopping the services of this data root.
        """

        def refuse() -> None:
            raise PipelineError(f"another command starts or stops the services in {self.path}; wait until it is done")

        with locked(self.path / "lock", busy=refuse):
            yield

    @property
    def _file(self) -> Path:
        return self.path / "services.json"

    def _write(self, records: Mapping[str, Started]) -> None:
        new = self._file.with_suffix(".new")
        new.write_bytes(_RECORDS.dump_json(list(records.values()), indent=2))
        new.replace(self._file)


def signal_groups(processes: list[psutil.Process], number: signal.Signals, *, but: Set[int] = frozenset()) -> None:
    """Send a signal to the process groups of these processes, except to the groups `but`."""
    for group in groups_of(processes) - but:
        with suppress(ProcessLookupError, PermissionError):  # ended meanwhile; macOS: EPERM for a group of zombies
            os.killpg(group, number)


def groups_of(processes: list[psutil.Process]) -> set[int]:
    """Return the process groups of these processes: a run and all that it starts are one group."""
    groups = set()
    for process in processes:
        with suppress(ProcessLookupError):
            groups.add(os.getpgid(process.pid))
    return groups


def gone(find: Callable[[], list[psutil.Process]], seconds: float) -> bool:
    """Wait until `find` finds no process any more."""
    deadline = time.monotonic() + seconds
    while find():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def environment_of(process: psutil.Process) -> dict[str, str]:
    """Read a process's environment; empty for other people's processes, and for those that have ended."""
    try:
        return dict(process.environ()) if process.status() != psutil.STATUS_ZOMBIE else {}
    except (psutil.Error, OSError):
        return {}


def last_lines(log: Path, count: int = 15) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def _mark(folder: Path, name: str) -> str:
    return str(folder / name)


def _mark_of(process: psutil.Process) -> str | None:
    return environment_of(process).get(_MARK)
