"""Step `training`: images per second, memory an image, and share of the card's arithmetic, of every objective.

The steps of `benchmarks.training_step`: forward, backward, clipping and AdamW in bfloat16 on images that lie on the
device. Then the trainer itself, fed from memory. With OFFICIAL_MAPET naming a checkout, the official step too.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_check.checks import Attempt, Check, Setup, passed_if
from benchmarks.gpu_check.clock import peak_memory, seconds, share_of_peak, wait
from benchmarks.official_mapet import OfficialCode
from benchmarks.training_step import BASE, SMALL, TINY, ObjectiveStep, Setting, official_step
from models.objectives import OBJECTIVES, build_objective
from models.vit.attention import Way
from models.vit.backbones import build_backbone
from models.vit.options import BackboneOptions
from pipeline.data.share import Share
from pipeline.engine.batches import Batch
from pipeline.training.options import TrainingOptions

DEMO = BackboneOptions(name="vit_demo", image_size=40, patch_size=4)  # of the quick form
_BATCH = 128


def attempts(setup: Setup) -> Iterator[Attempt]:
    backbones = (DEMO,) if setup.quick else (TINY, SMALL, BASE)
    for backbone in backbones:
        yield f"mapet {backbone.name}", lambda b=backbone: _eager("mapet", b, setup)
        yield f"trainer {backbone.name}", lambda b=backbone: _trainer(b, setup)
    for name in OBJECTIVES:
        for backbone in backbones:
            if name != "mapet":
                yield f"{name} {backbone.name}", lambda n=name, b=backbone: _eager(n, b, setup)
    for backbone in backbones:
        for way in get_args(Way) if setup.is_cuda else ("blocks",):
            yield f"mapet {backbone.name}, {way}", lambda b=backbone, w=way: _in_windows(w, b, setup)
    if checkout := os.environ.get("OFFICIAL_MAPET"):
        for backbone in (TINY, SMALL, BASE):
            yield f"official {backbone.name}", lambda b=backbone: _official(checkout, b, setup)
    if not setup.quick:  # compiling takes half a minute each
        for name, backbone in (("mapet", TINY), ("mapet", BASE), ("mapet", SMALL), ("mim", BASE), ("mim", TINY)):
            yield f"{name} {backbone.name}, compiled", lambda n=name, b=backbone: _compiled(n, b, setup)


def _setting(backbone: BackboneOptions, setup: Setup, *, images: int = _BATCH) -> Setting:
    vocabulary = setup.size(8192, 8)
    return Setting(backbone, "bf16", batch=setup.size(images, 2), vocabulary=vocabulary, device=setup.device)


def _eager(name: str, backbone: BackboneOptions, setup: Setup) -> Iterator[Check]:
    step = ObjectiveStep(_setting(backbone, setup), name)
    yield from _rate(f"{name} {backbone.name}", step, step, setup)
    if setup.is_cuda:
        yield from _memory(name, backbone, setup)
        yield _busy(f"{name} {backbone.name}, card at work", step, setup)


def _compiled(name: str, backbone: BackboneOptions, setup: Setup) -> Iterator[Check]:
    torch.compiler.reset()
    step, eager = (ObjectiveStep(_setting(backbone, setup), name, compiled=on) for on in (True, False))
    with torch.no_grad():
        gap = abs(step.loss().item() - eager.loss().item())
    yield passed_if(gap < 0.02, f"{name} {backbone.name}, compiled as eager", value=gap, unit="between the losses")
    yield from _rate(f"{name} {backbone.name}, compiled", step, eager, setup)


def _in_windows(way: Way, backbone: BackboneOptions, setup: Setup) -> Iterator[Check]:
    """Measure MaPeT's step where its windows are not a mask, against `mapet` with one."""
    label = f"mapet {backbone.name}, {way}"
    step, masked = (ObjectiveStep(_setting(backbone, setup), "mapet", attention=how) for how in (way, "auto"))
    with torch.no_grad():
        gap = abs(step.loss().item() - masked.loss().item())
    yield passed_if(gap < 0.02, f"{label} as with a mask", value=gap, unit="between the losses")
    yield from _rate(label, step, masked, setup)
    if setup.is_cuda:
        took = peak_memory(step, setup.device) / peak_memory(masked, setup.device)
        yield Check(f"{label}, memory", "measured", took, "of that with a mask, weights apart")


def _official(checkout: str, backbone: BackboneOptions, setup: Setup) -> Iterator[Check]:
    """Measure the official step. Its masks are drawn beforehand, as if its loader's workers cost nothing; copying them
    counts."""
    ours = ObjectiveStep(_setting(backbone, setup), "mapet")
    step = official_step(OfficialCode.load(Path(checkout)), ours, keep_masks=True)
    yield from _rate(f"official {backbone.name}", step, ours, setup)  # which computes the same


def _rate(label: str, step: Callable[[], object], counted: ObjectiveStep, setup: Setup) -> Iterator[Check]:
    """Measure images per second; the arithmetic is that of `counted` in the same time."""
    took = seconds(step, setup.device, count=setup.size(10, 1), warm_up=setup.size(3, 1))
    note = share_of_peak(counted.flops() / took, setup.device)
    yield Check(label, "measured", counted.setting.batch / took, "images/s", note)


def _busy(label: str, step: ObjectiveStep, setup: Setup) -> Check:
    """Measure the share of the time in which a kernel runs: the rest is gaps that the host leaves between them."""
    count = setup.size(5, 1)
    took = seconds(step, setup.device, count=count, warm_up=1)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(count):
            step()
        wait(setup.device)
    at_work = sum(event.self_device_time_total for event in profiled.key_averages()) / 1e6 / count
    return Check(label, "measured", 100 * at_work / took, "% of a step")


def _memory(name: str, backbone: BackboneOptions, setup: Setup) -> Iterator[Check]:
    """Measure what one more image takes, and how many the card holds beside weights and optimizer."""
    few, many = setup.size(32, 2), setup.size(64, 4)
    peaks = []
    for images in (few, many):
        step = ObjectiveStep(_setting(backbone, setup, images=images), name)
        step()  # the optimizer's state
        held = torch.cuda.memory_allocated()
        peaks.append(held + peak_memory(step, setup.device))
    an_image = (peaks[1] - peaks[0]) / (many - few)
    fixed = peaks[0] - few * an_image
    fits = int((torch.cuda.get_device_properties(setup.device).total_memory - fixed) / max(an_image, 1))
    note = f"{fits} fit, with {fixed / 2**20:.0f} MiB for the rest"
    yield Check(f"{name} {backbone.name}, memory", "measured", an_image / 2**20, "MiB an image", note)


class _Images:
    """Random ones in 8 bits that lie in the host's memory, with tokens and seeds."""

    repeats = 1
    val_rows = np.arange(0)

    def __init__(self, count: int, side: int, patches: int, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.train_rows = np.arange(count)
        self._pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
        self._tokens = torch.randint(vocabulary, (count, patches), generator=generator)

    def training(self, shares: Iterable[Share]) -> Iterator[Batch]:
        for share in shares:
            rows = torch.from_numpy(share.rows)
            yield Batch(share.rows, (self._pixels[rows], self._tokens[rows], rows + share.epoch))

    def validation(self, groups: Iterable[np.ndarray]) -> Iterator[Batch]:
        return iter(())


class Silence:
    """A reporter that nobody listens to."""

    def begin(self, images: int, *, done: int) -> None:
        pass

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        pass

    def advance(self, images: int, note: str) -> None:
        pass


def _trainer(backbone: BackboneOptions, setup: Setup) -> Iterator[Check]:
    """Measure the loop of the pipeline, which asks more of the host than the step alone."""
    from pipeline.engine.processes import Processes
    from pipeline.engine.settings import Settings
    from pipeline.training.loop import Trainer
    from pipeline.training.token_prediction import TokenPrediction, pretraining_square

    setting = _setting(backbone, setup)
    chosen = OBJECTIVES["mapet"].options_class()
    objective = build_objective("mapet", build_backbone(backbone, seed=0), setting.vocabulary, chosen, seed=0)
    feed = _Images(2 * setting.batch, backbone.image_size, objective.patches, setting.vocabulary)
    options = TrainingOptions(
        epochs=setup.size(15, 1), warmup_epochs=0, batch_size=setting.batch, report_steps=10, precision="bf16"
    )
    losses: list[float] = []
    reporter = Silence()
    reporter.metrics = lambda values, step: losses.extend(v for k, v in values.items() if k == "loss")  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(prefix="mapet-trainer-") as folder:
        notes = Trainer(
            TokenPrediction(objective, pretraining_square(backbone.image_size), jitter=0.4),
            feed,
            options,
            seed=0,
            folder=Path(folder),
            settings=Settings(data_root=Path(folder), device=setup.device),
            processes=Processes(torch.device(setup.device)),
            reporter=reporter,
        ).run()
    label = f"trainer {backbone.name}"
    yield Check(label, "measured", notes["images_per_second"], "images/s", "first step and checkpoint included")
    yield passed_if(bool(losses) and all(np.isfinite(losses)), f"{label}, loss", value=losses[-1], unit="at the end")
