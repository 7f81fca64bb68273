"""CPU-seconds of commands that compute nothing, against `python -c "import torch"`.

What they import is what they cost. `plan` is measured where `MAPET_DATA_ROOT` holds all of `mapet reproduce demo`, and
left out elsewhere: what is to run is looked at with torch.
"""

import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from benchmarks.measure import Measurement, Seconds, interleaved, median_ratio

Command = Sequence[str]
AGAINST = 'python -c "import torch"'
IMPORT_TORCH = ("-c", "import torch")
_MAPET = ("-m", "pipeline.commands.main")
ANSWERS = {
    "show": (*_MAPET, "show", "pretrain", "vit_base"),
    "typing_error": (*_MAPET, "pretrain", "vit_base", "pretrain.objectiv=mim"),
}
PLAN = (*_MAPET, "plan", "reproduce", "demo")


def run(rounds: int = 5, commands: Mapping[str, Command] = ANSWERS, plan: Command = PLAN) -> list[Measurement]:
    """Measure each command against importing torch: medians of the seconds, and of the rounds' ratios."""
    chosen = {**commands, "plan": plan} if _is_cached(plan) else dict(commands)
    works = {name: partial(_start, command) for name, command in {**chosen, "torch": IMPORT_TORCH}.items()}
    seconds = interleaved(works, rounds=rounds)
    return [_compared(name, seconds[name], seconds["torch"]) for name in chosen]


def _start(command: Command) -> str:
    """Run to the end, whatever the exit status (a typing error has one too), and return what was printed."""
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False).stdout


def _is_cached(plan: Command) -> bool:
    """Tell whether nothing would run. Asked before anything is measured: digests of networks are remembered then."""
    states = [line.split()[1] for line in _start(plan).splitlines() if line.startswith("  ")]
    return bool(states) and set(states) == {"cached"}


def _compared(name: str, ours: Sequence[Seconds], torch: Sequence[Seconds]) -> Measurement:
    cpu, other = [one.cpu for one in ours], [one.cpu for one in torch]
    against = f"{AGAINST}: {statistics.median(other):.3g} CPU-s"
    return Measurement(f"startup.{name}", statistics.median(cpu), "CPU-s", against, median_ratio(cpu, other))
