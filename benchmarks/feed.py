"""Images per CPU-second that arrive at the training loop at 224 px: decoded (exact, fast), and read from kept squares.

What pre-training is fed with on a CPU: shuffled steps of pixels, tokens and seeds. CPU-seconds are the user's and the
system's, of this process and of its workers, starting them included. All files are in the page cache.

The memory of reading must not grow with the number of squares: it is the peak of a process that reads all of a store,
so slowly that as much waits for it as ever may. `feed.demo` is `mapet pretrain demo` with kept squares and without,
when all that comes before is made.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import MeasuredProcess, Measurement, in_own_process, interleaved, median_ratio
from benchmarks.pictures import write_photographs
from pipeline.data.decode import read_and_decode
from pipeline.data.decoding_options import DecodePreset
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.kinds import open_source
from pipeline.data.token_images import TokenImages
from pipeline.data.token_rows import Splits
from pipeline.engine.batches import in_groups, on_device
from pipeline.engine.settings import Settings
from pipeline.engine.stage_record import BuildNotes
from pipeline.engine.threads import one_thread
from pipeline.stages.index_images import index_of
from pipeline.training.options import TrainingOptions
from pipeline.training.plan import StepPlan
from pipeline.training.token_prediction import pretraining_square
from storage.artifact import list_artifacts
from storage.layout import Layout
from storage.square_store import SquareStore
from tests.squares import write_squares

PRESETS: tuple[DecodePreset, ...] = ("exact", "fast")
_PATCHES = 196
_EPOCHS = 4  # of squares, which are read in no time: starting would weigh more than in a training
_PAUSE = 0.05  # seconds after each batch, in which threads read as far ahead as they may


def run(
    photographs: int = 512,
    squares: int = 4_096,
    batch: int = 256,
    image_size: int = 224,
    rounds: int = 5,
    few: int = 8_192,
    many: int = 16_384,
    demo: bool = "stored_squares" in Settings.model_fields,
) -> list[Measurement]:
    """Measure decoding `photographs` against reading `squares`, the memory of reading `few` and `many`, and the demo
    where squares can be kept."""
    with tempfile.TemporaryDirectory(prefix="mapet-feed-") as name:
        folder = Path(name)
        write_photographs(folder / "images", count=photographs)
        decoded = _decoded(folder, image_size)
        _write_squares(folder / "squares", squares, decoded)
        works = {preset: partial(_train, folder, preset, image_size, batch) for preset in PRESETS}
        works["stored"] = partial(_train, folder, "exact", image_size, batch, folder / "squares", epochs=_EPOCHS)
        measured = _rates(works, image_size, rounds)
        small, large = (_memory(folder, count, batch, decoded[:1]) for count in (few, many))
    measured += _compared(small, large, few=few, many=many)
    return measured + (_demo(rounds=2) if demo else [])


def _rates(works: Mapping[str, Callable[[], int]], image_size: int, rounds: int) -> list[Measurement]:
    with one_thread():
        images = {name: work() for name, work in works.items()}  # and imports, first allocations
        seconds = interleaved(works, rounds=rounds)
    rates = {name: [images[name] / one.cpu for one in found] for name, found in seconds.items()}
    unit, exact = f"images per CPU-second, {image_size} px", rates.pop("exact")
    measured = [Measurement("feed.exact", statistics.median(exact), unit)]
    against = f"exact: {statistics.median(exact):.0f}"
    for name, found in rates.items():
        ratio = median_ratio(found, exact)
        measured.append(Measurement(f"feed.{name}", statistics.median(found), unit, against, ratio))
    return measured


def _train(
    folder: Path,
    preset: DecodePreset,
    image_size: int,
    batch: int,
    squares: Path | None = None,
    pause: float = 0.0,
    epochs: int = 1,
) -> int:
    """Take every step of some epochs, of photographs or of squares; returns how many images there were."""
    options = ImageSourceOptions(path=f"{folder}/images")
    source = open_source(options)
    index = index_of(source.scan(), options)
    store = None if squares is None else SquareStore.open(squares)
    rows = np.arange(len(index) if store is None else len(store.status))
    feed = TokenImages(
        index,
        source,
        np.zeros((len(rows), _PATCHES), np.uint16),
        Splits(rows, rows[:0], invalid=0),
        preprocessing=pretraining_square(image_size),
        decoding=preset,
        seed=0,
        settings=Settings(device="cpu"),
        squares=store,
    )
    plan, images = StepPlan(rows, TrainingOptions(epochs=epochs, batch_size=batch, warmup_epochs=0), seed=0), 0
    for found in on_device(feed.training(plan.shares(0)), torch.device("cpu")):
        images += len(found)
        time.sleep(pause)
    return images


def _decoded(folder: Path, image_size: int) -> np.ndarray:
    options = ImageSourceOptions(path=f"{folder}/images")
    source = open_source(options)
    index, reader = index_of(source.scan(), options), source.reader()
    square = pretraining_square(image_size)
    found = (
        read_and_decode(reader, one, square, preset="exact", max_pixels=1 << 20).pixels
        for one in index.entries(np.arange(len(index)))
    )
    return np.stack([pixels for pixels in found if pixels is not None])


def _write_squares(folder: Path, count: int, squares: np.ndarray) -> None:
    """Write a store of `count` squares: the given ones, again and again."""
    shards = in_groups(np.arange(count), ImageSourceOptions().images_per_shard)
    write_squares(folder, lambda row: squares[row % len(squares)], shards, image_size=squares.shape[-1])


def _memory(folder: Path, count: int, batch: int, squares: np.ndarray) -> MeasuredProcess:
    _write_squares(folder / f"{count}", count, squares)
    measured = in_own_process(_train, folder, "exact", squares.shape[-1], batch, folder / f"{count}", _PAUSE)
    shutil.rmtree(folder / f"{count}")
    return measured


def _compared(small: MeasuredProcess, large: MeasuredProcess, *, few: int, many: int) -> list[Measurement]:
    few_mb, many_mb = small.peak_anonymous / 1e6, large.peak_anonymous / 1e6
    ratio = many_mb / few_mb if few_mb else None
    return [
        Measurement(
            "feed.stored.memory",
            many_mb,
            f"MB, peak anonymous, {many:,} squares",
            f"{few:,} squares: {few_mb:.0f} MB",
            ratio,
        )
    ]


def _demo(rounds: int) -> list[Measurement]:
    """Measure the command with kept squares and without, and the speed that it says its training had."""
    with tempfile.TemporaryDirectory(prefix="mapet-feed-demo-") as folder:
        root = Path(folder)
        speeds: dict[bool, list[float]] = {True: [], False: []}

        def pretrain(stored: bool) -> None:
            shutil.rmtree(root / "pretrain", ignore_errors=True)
            words = ("pretrain", "demo", f"settings.data_root={root}", f"settings.stored_squares={str(stored).lower()}")
            subprocess.run([sys.executable, "-m", "pipeline.commands.main", *words], check=True, capture_output=True)
            (trained,) = list_artifacts(Layout(root), "pretrain")
            speeds[stored].append(BuildNotes.of(trained).images_per_second or 0.0)

        pretrain(True)
        speeds[True].clear()
        seconds = interleaved({"stored": partial(pretrain, True), "decoded": partial(pretrain, False)}, rounds=rounds)
    cpu, decoded = ([one.cpu for one in seconds[name]] for name in ("stored", "decoded"))
    rates = {stored: statistics.median(found) for stored, found in speeds.items()}
    return [
        Measurement(
            "feed.demo.cpu",
            statistics.median(cpu),
            "CPU-s of `mapet pretrain demo`, stored",
            f"decoded: {statistics.median(decoded):.3g} CPU-s",
            median_ratio(cpu, decoded),
        ),
        Measurement(
            "feed.demo.speed",
            rates[True],
            "images/s, stored",
            f"decoded: {rates[False]:.4g}",
            median_ratio(speeds[True], speeds[False]),
        ),
    ]
