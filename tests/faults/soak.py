"""`python -m tests.faults.soak [--minutes N] [--seed S]`: hundreds of kills and damaged files, one chain after another.

What was done is counted in `benchmarks/results/soak.jsonl`; exit status 1 and a sentence each tell what went wrong.
"""

import argparse
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from benchmarks.measure import Measurement, commit, hardware, write_results
from pipeline.engine.threads import share_cores
from storage.artifact import RECORD
from tests.faults.chain import STAGES, Expected, expected_of, published, wrong_results
from tests.faults.damage import DAMAGES, files_of
from tests.faults.kills import Blow, Ordeal, at_random_moments, in_every_stage, require_end, start_chain, survive

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KILLS_OF_A_CHAIN = 12
DAMAGES_OF_A_CHAIN = 12


@dataclass
class Counts:
    """Faults by kind and by the stage that they hit, runs that had to put them right, and what was wrong after them."""

    faults: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    chains: int = 0
    runs: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, ordeal: Ordeal) -> None:
        self.faults.update(ordeal.sent)
        self.stages.update(ordeal.hit)
        self.runs += ordeal.attempts
        self.wrong += dict.fromkeys(ordeal.wrong)  # seen again after each blow

    def measurements(self, seconds: float) -> list[Measurement]:
        kinds = {"faults": self.faults.total(), **{f"faults.{kind}": n for kind, n in sorted(self.faults.items())}}
        kinds |= {f"faults.in.{stage}": self.stages[stage] for stage in (*STAGES, "between stages")}
        kinds |= {"chains": self.chains, "runs": self.runs, "wrong_results": len(self.wrong)}
        counted = [Measurement(f"soak.{name}".replace(" ", "_"), n, "count") for name, n in kinds.items()]
        return [*counted, Measurement("soak.minutes", seconds / 60, "minutes")]


class Soak:
    """Chains in folders of their own below `folder`, all compared with one that nothing disturbs."""

    def __init__(self, folder: Path, drawn: random.Random) -> None:
        self._folder, self._drawn, self.counts = folder, drawn, Counts()
        self._undisturbed = folder / "undisturbed"
        self._run(self._undisturbed)
        self._expected: Expected = expected_of(self._undisturbed)

    def kill_at_random_moments(self) -> None:
        self._survive(list(at_random_moments(self._drawn, KILLS_OF_A_CHAIN, SIGNALS)))

    def kill_at_random_moments_while_tracked(self) -> None:
        self._survive(list(at_random_moments(self._drawn, KILLS_OF_A_CHAIN, SIGNALS)), tracked=True)

    def kill_in_every_stage(self) -> None:
        self._survive(list(in_every_stage(self._drawn)))

    def damage_files(self) -> None:
        """Damage one after the other; each costs the artifact that it is in, and no other."""
        root = self._folder / f"chain-{self.counts.chains}"
        shutil.copytree(self._undisturbed, root)
        for _ in range(DAMAGES_OF_A_CHAIN):
            kind, artifact = self._drawn.choice(sorted(DAMAGES)), self._drawn.choice(published(root))
            path = self._drawn.choice([*files_of(artifact), artifact.path / RECORD])
            before = _records(root)
            DAMAGES[kind](path, self._drawn)
            self._run(root)
            again = {path for path, made in _records(root).items() if before.get(path) != made}
            if again != {artifact.path}:
                names = ", ".join(sorted(map(str, again)))
                self.counts.wrong.append(f"{kind}: {path}: made again was {names or 'nothing'}")
            self.counts.wrong += wrong_results(root, self._expected, whole=True)
            self.counts.faults[kind] += 1
            self.counts.stages[artifact.stage] += 1
        self._done(root)

    def _survive(self, blows: Sequence[Blow], *, tracked: bool = False) -> None:
        root = self._folder / f"chain-{self.counts.chains}"
        self.counts.add(survive(root, self._expected, blows, tracked=tracked))
        self._done(root)

    def _run(self, root: Path) -> None:
        process = start_chain(root)
        process.join()
        require_end(process, root, stopped=False)
        self.counts.runs += 1

    def _done(self, root: Path) -> None:
        self.counts.chains += 1
        if not self.counts.wrong:  # else somebody will want to look at it
            shutil.rmtree(root)


def _records(root: Path) -> dict[Path, int]:
    return {path.parent: path.stat().st_mtime_ns for path in root.glob(f"*/*/{RECORD}")}


def soak(soaked: Soak, minutes: float) -> None:
    """Run ordeals in turns until the time is over; what has begun is brought to its end."""
    deadline = time.monotonic() + minutes * 60
    for ordeal in _turns(soaked):
        ordeal()
        counts = soaked.counts
        logging.getLogger("mapet.soak").info(
            "%d chains, %d faults, %d wrong results", counts.chains, counts.faults.total(), len(counts.wrong)
        )
        if time.monotonic() >= deadline:
            return


def _turns(soaked: Soak) -> Iterator[Callable[[], None]]:
    return cycle(
        (
            soaked.kill_at_random_moments,
            soaked.damage_files,
            soaked.kill_in_every_stage,
            soaked.kill_at_random_moments_while_tracked,
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--minutes", type=float, default=60, help="how long (default: an hour)")
    parser.add_argument("--seed", type=int, default=0, help="of moments, signals and bytes (default: 0)")
    given = parser.parse_args(arguments)
    share_cores()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("mapet.soak").setLevel(logging.INFO)
    started, machine = time.monotonic(), hardware()
    folder = Path(tempfile.mkdtemp(prefix="mapet-soak-"))
    soaked = Soak(folder, random.Random(given.seed))
    counts = soaked.counts
    try:
        soak(soaked, given.minutes)
    finally:  # what was done counts, whatever ended it
        path = write_results("soak", counts.measurements(time.monotonic() - started), hardware=machine, commit=commit())
    sys.stderr.write("".join(f"WRONG: {sentence}\n" for sentence in counts.wrong) + f"{path}\n")
    if counts.wrong:
        sys.stderr.write(f"kept for a look: {folder}\n")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
