"""`python -m benchmarks.gpu_check`: see --help."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu_check.checks import Setup
from benchmarks.gpu_check.runner import Record, Step, card_of, run_all

RESULTS = Path(__file__).parents[1] / "results" / "gpu"
_HERE = "benchmarks.gpu_check"
# What decides whether the card can be used comes first, what can only be slow comes last. Together the limits are more
# than the 25 minutes: a step that hangs costs the last ones.
STEPS = (
    Step("machine", f"{_HERE}.machine", 120),
    Step("nccl", f"{_HERE}.nccl", 90),
    Step("attention", f"{_HERE}.attention", 240),
    Step("assignment", f"{_HERE}.assignment", 90),
    Step("kmeans", f"{_HERE}.kmeans", 150),
    Step("tests", f"{_HERE}.suite", 420),
    Step("training", f"{_HERE}.training", 360),
    Step("encoder", f"{_HERE}.encoder", 240),
    Step("feeds", f"{_HERE}.feeds", 120),
    Step("demo", f"{_HERE}.demo", 480),
)


def main(words: Sequence[str]) -> int:
    """Run the steps and return the exit status: 1 if something failed or hung, 2 for words that make no sense."""
    options = _parser().parse_args(words)
    names = options.steps.split(",") if options.steps else [step.name for step in STEPS]
    if unknown := set(names) - {step.name for step in STEPS}:
        print(f"no step {unknown.pop()!r}; there are: {', '.join(step.name for step in STEPS)}", file=sys.stderr)
        return 2
    card = card_of(options.device)
    record = Record(
        options.to / f"{card.file_name}{'-quick' if options.quick else ''}.jsonl",
        {**vars(card), "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")},
    )
    print(f"{card.card}, driver {card.driver or 'unknown'}, torch {card.torch}, CUDA {card.cuda}; to {record.path}")
    chosen = [step for step in STEPS if step.name in names]
    found = run_all(chosen, Setup(options.device, options.quick), record, minutes=options.minutes)
    counts = Counter(check.status for check in found)
    print("\n" + ", ".join(f"{count} {status}" for status, count in counts.most_common()))
    return 1 if counts["failed"] + counts["timed out"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description="Checks and measures a card; writes a line per check, and what the steps say to a .log beside.",
    )
    parser.add_argument("--steps", default="", help=f"some of {','.join(step.name for step in STEPS)}")
    parser.add_argument("--device", default="cuda", help="cpu: does the check itself run?")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: seconds, and numbers that mean nothing")
    parser.add_argument("--minutes", type=float, default=25, help="in all; what is left then is left out")
    parser.add_argument("--to", type=Path, default=RESULTS, help="folder of the results")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
