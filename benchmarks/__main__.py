"""`python -m benchmarks [name ...]`: run all or the named benchmarks and write `benchmarks/results/<name>.jsonl`."""

import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module

from benchmarks.measure import RESULTS, Measurement, commit, hardware, write_results
from pipeline.engine.threads import share_cores

NAMES = (
    "memory",
    "index",
    "encoder_share",
    "vqkd",
    "token_store",
    "kmeans",
    "decode",
    "feed",
    "attention",
    "training_step",
    "startup",
)


def main(names: Sequence[str]) -> int:
    """Run benchmarks and return the exit status: 2 for a name that is no benchmark's."""
    if unknown := [name for name in names if name not in NAMES]:
        print(f"no benchmark {unknown[0]!r}; there are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    chosen = [name for name in NAMES if name in names] if names else list(NAMES)
    os.environ.setdefault("GOMP_SPINCOUNT", "0")  # or CPU-seconds would count threads that wait for work
    share_cores()
    print(f"running {', '.join(chosen)}; results go to {RESULTS}")
    for name in chosen:
        _run(name)
    return 0


def _run(name: str) -> None:
    module = import_module(f"benchmarks.{name}")  # torch, faiss, ...: only what is run
    print(f"\n{name}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
    machine, revision, started = hardware(), commit(), time.monotonic()
    measurements: list[Measurement] = module.run()
    if not measurements:
        return
    path = write_results(name, measurements, hardware=machine, commit=revision)
    for item in measurements:
        ratio = f"{item.ratio:6.3f}x" if item.ratio is not None else " " * 7
        print(f"  {item.name:<36} {item.value:>12.4g} {item.unit}  {ratio} {item.against}")
    print(f"  {time.monotonic() - started:.0f} s, {path}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
