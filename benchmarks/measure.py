"""What every benchmark needs: time, peak memory of a process of its own, the machine's name, results as JSON lines.

On a shared machine the same work takes twice as long from one minute to the next. So whatever is compared runs in
turns, round by round, and the result is the median of the rounds' ratios; CPU seconds stand beside wall seconds.
"""

import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from storage.files import write_whole

RESULTS = Path(__file__).parent / "results"
_REPOSITORY = Path(__file__).parent.parent
_SECONDS_BETWEEN_SAMPLES = 0.01
_SAMPLES_PER_FAMILY_SAMPLE = (
    20  # reading the memory maps of several processes takes milliseconds, of one number microseconds
)


@dataclass(frozen=True)
class Measurement:
    """`value` in `unit`; `ratio` is value / the value of what `against` names, None where nothing is compared."""

    name: str
    value: float
    unit: str
    against: str = ""
    ratio: float | None = None


def write_results(
    name: str, measurements: Iterable[Measurement], *, hardware: str, commit: str, folder: Path = RESULTS
) -> Path:
    """Write `<folder>/<name>.jsonl`, one line per measurement, in place of an earlier run's."""
    path = folder / f"{name}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({**_rounded(asdict(item)), "hardware": hardware, "commit": commit}) for item in measurements]
    write_whole(path, ("\n".join(lines) + "\n").encode())
    return path


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    """Round to four digits: more would pretend to a precision that a timing does not have."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in fields.items()}


@dataclass(frozen=True)
class Seconds:
    """`cpu`: of all threads of this process, and of the children that ended meanwhile."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Seconds:
    wall, cpu = time.perf_counter(), _cpu_seconds()
    work()
    return Seconds(time.perf_counter() - wall, _cpu_seconds() - cpu)


def interleaved(works: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[Seconds]]:
    """Time each of `works` once per round; every round begins with another one, so that none is always the first."""
    names = list(works)
    seconds: dict[str, list[Seconds]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(timed(works[name]))
    return seconds


def median_ratio(values: Sequence[float], against: Sequence[float]) -> float | None:
    """Return the median over rounds of value / against; None where `against` is 0, as a tiny trial run's memory is."""
    if not all(against):
        return None
    return statistics.median(value / other for value, other in zip(values, against, strict=True))


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@dataclass(frozen=True)
class MeasuredProcess:
    """What a function returned, and the peak memory in bytes of the process in which it ran alone.

    Anonymous memory is what no file backs: the part that cannot be dropped and read again. `peak_family` is that of the
    process and its children, pages that they share counted once. `peak_resident` has the mapped files in it (the
    kernel's VmHWM: `ru_maxrss` without what a process inherits from the one that started it).
    """

    result: Any
    peak_anonymous: int
    peak_family: int
    peak_resident: int


def in_own_process(function: Callable[..., Any], *arguments: object) -> MeasuredProcess:
    """Run a module's function in a new interpreter and watch its memory from here, so that watching costs it nothing.

    Raises:
        RuntimeError: the process died; its traceback is on stderr.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, arguments))
    process.start()
    sender.close()
    anonymous, family, samples = 0, 0, 0
    while not receiver.poll(_SECONDS_BETWEEN_SAMPLES):
        anonymous = max(anonymous, anonymous_bytes(process.pid or 0))
        if samples % _SAMPLES_PER_FAMILY_SAMPLE == 0:
            family = max(family, _family_bytes(process.pid or 0))
        samples += 1
    try:
        result, resident = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__}: its process ended with exit code {process.exitcode}") from None
    process.join()
    return MeasuredProcess(result, anonymous, family, resident)


def _call(sender: Connection, function: Callable[..., Any], arguments: Sequence[object]) -> None:
    result = function(*arguments)
    sender.send((result, _kilobytes(Path("/proc/self/status"), "VmHWM")))


def anonymous_bytes(pid: int | None = None) -> int:
    """Read how much anonymous memory a process has now, by default this one; 0 when it is gone."""
    return _kilobytes(Path(f"/proc/{pid or 'self'}/status"), "RssAnon")


def _family_bytes(pid: int) -> int:
    try:
        pids = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0
    return sum(_kilobytes(Path(f"/proc/{each}/smaps_rollup"), "Pss_Anon") for each in pids)


def _kilobytes(path: Path, field: str) -> int:
    """Read a line `Field:   123 kB` of a file of the kernel as bytes; 0 when the process or its memory is gone."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def hardware() -> str:
    """Name the processor, the cores that may be used, memory, GPU, and how busy the machine is."""
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 2**30
    return f"{_processor()}, {cores} cores, {memory:.0f} GiB, {_gpu()}, load {os.getloadavg()[0]:.1f}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def commit() -> str:
    """Name the commit that is checked out, "+changes" when tracked files differ from it; "unknown" without git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    command = ("git", "--no-optional-locks", *arguments)
    return subprocess.run(command, cwd=_REPOSITORY, check=True, capture_output=True, text=True).stdout.strip()
