"""Step `demo`: what `mapet reproduce demo` computes on the device, against the CPU of the same machine.

Both at once, each in a process and a data root of its own, tracked nowhere. The numbers differ by chance: the demo's
CLIP is trained first, and every rounding makes another one of it. So a score is right if its interval and the CPU's
overlap.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_check.checks import Attempt, Check, Setup, passed_if

_CUTS = (  # of the quick form
    *("demo_images.limit=200", "demo_images.renderings=1", "demo_clip.epochs=1", "features.sample_fraction=1.0"),
    *("codebook.vocabulary=16", 'grid.objectives=["mim"]', "grid.tokens_only=[]", "grid.scratch_protocols=[]"),
    *("training.epochs=1", "training.warmup_epochs=0", "frozen_features.training.epochs=1"),
    *("frozen_features.training.batch_size=32", 'evaluate.protocols=["frozen_features"]'),
)
Scores = dict[str, tuple[float, float, float]]


def attempts(setup: Setup) -> Iterator[Attempt]:
    yield "demo", lambda: _demo(setup)


def _demo(setup: Setup) -> Iterator[Check]:
    with tempfile.TemporaryDirectory(prefix="mapet-gpu-demo-") as folder:
        expected = _begin("cpu", Path(folder, "cpu"), setup)
        found = _begin(setup.device, Path(folder, "device"), setup)
        (on_device, took), (on_cpu, cpu_took) = _end(found), _end(expected)
    yield Check("demo", "measured", took, "s on the device", f"{cpu_took:.0f} s on the CPU beside it")
    yield passed_if(on_device.keys() == on_cpu.keys(), "demo, all parts", value=len(on_device), unit="scores")
    for name in sorted(on_device.keys() & on_cpu.keys()):
        (value, low, high), (other, least, most) = on_device[name], on_cpu[name]
        note = f"CPU {other:.1f} ({least:.1f} to {most:.1f})"
        yield passed_if(low <= most and least <= high, name, value=value, unit="%", note=note)


def _begin(device: str, root: Path, setup: Setup) -> subprocess.Popen[str]:
    """Start the demo in a process of its own, with half of the cores: two run at once."""
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    words = [sys.executable, "-m", "benchmarks.gpu_check.demo", device, str(root), *(["quick"] if setup.quick else [])]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MAPET_WORKERS": threads, **hidden}
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)


def _end(process: subprocess.Popen[str]) -> tuple[Scores, float]:
    said, _ = process.communicate()
    lines = said.splitlines()
    if process.returncode or not lines:
        raise RuntimeError(f"the demo ended with exit code {process.returncode}, see the log")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise RuntimeError(answer["error"])
    if "missing" in answer:
        raise ModuleNotFoundError(answer["missing"], name=answer["missing"])
    return {name: tuple(numbers) for name, numbers in answer["scores"].items()}, answer["seconds"]


def scores_of_demo(device: str, root: Path, *, quick: bool) -> Scores:
    """Run the demo and return each score's value and interval, by what it is of."""
    from pipeline.chains.by_name import CHAINS
    from pipeline.chains.run import run
    from pipeline.configuration.overrides import apply_overrides
    from pipeline.configuration.presets import preset
    from pipeline.engine.settings import Settings
    from pipeline.engine.tracker import NoTracking
    from pipeline.engine.workspace import Workspace
    from pipeline.stages.evaluate.evaluate import Evaluate
    from pipeline.stages.evaluate.scores import read_scores

    config = apply_overrides(preset("reproduce", "demo"), _CUTS if quick else ())
    made = run(CHAINS["reproduce"].graph(config), Workspace(Settings(data_root=root, device=device), NoTracking()))
    if made.failures:
        raise RuntimeError("; ".join(f"{failure.part}: {failure.reason}" for failure in made.failures))
    return {
        f"{result.label}, {score.name}": (score.value, score.low, score.high)
        for result in made.results
        if result.stage == Evaluate.NAME
        for score in read_scores(result.artifact.path)
    }


def main(device: str, root: str, *quick: str) -> None:
    """Print the scores in JSON, on the last line: these, what could not be imported, or the error."""
    started = time.monotonic()
    try:
        scores = scores_of_demo(device, Path(root), quick=bool(quick))
    except ModuleNotFoundError as error:
        print(json.dumps({"missing": error.name}))
        return
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": str(error)}))
        return
    print(json.dumps({"scores": scores, "seconds": time.monotonic() - started}))


if __name__ == "__main__":
    main(*sys.argv[1:])
