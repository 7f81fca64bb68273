"""Every learner of the project in the trainer: a step is the same however it is cut into pieces and processes."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.engine.processes import Processes
from pipeline.engine.settings import Settings
from pipeline.engine.tracker import NoTracking
from pipeline.stages.evaluate.protocol import MemoryFeed
from pipeline.training.history import read_history
from pipeline.training.launch import train_together
from pipeline.training.loop import Reporter, Trainer
from pipeline.training.options import TrainingOptions
from pipeline.training.reporting import TrackingReporter
from tests.forked import call
from tests.pipeline.learners import IMAGES, LEARNERS


def one_step(name: str, folder: Path, processes: Processes, reporter: Reporter, *, at_once: int = 0) -> dict[str, Any]:
    """Return the loss of one step, its gradient of every parameter, and what else the step has moved."""
    learner, inputs = LEARNERS[name]()
    feed = MemoryFeed(lambda rows: tuple(each[rows] for each in inputs), np.arange(IMAGES), np.arange(0))
    training = TrainingOptions(
        epochs=1, batch_size=IMAGES, warmup_epochs=0, precision="fp32", gradient_clip=None, report_steps=1
    )
    folder.mkdir(parents=True, exist_ok=True)
    machine = Settings(data_root=folder, device="cpu", workers=0, micro_batch_size=at_once)
    parts = {"folder": folder, "settings": machine, "processes": processes, "reporter": reporter}
    Trainer(learner, feed, training, seed=3, **parts).run()  # type: ignore[arg-type]
    gradients = {name: weight.grad for name, weight in learner.named_parameters() if weight.grad is not None}
    loss = next(entry["loss"] for entry in read_history(folder) if "loss" in entry) if processes.is_first else None
    return {"loss": loss, **gradients, **{f"buffer {name}": buffer for name, buffer in learner.named_buffers()}}


def all_steps(folder: Path, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    for name in LEARNERS:
        found = one_step(name, folder / name, processes, reporter)
        if processes.is_first:
            torch.save(found, folder / f"{name}.pt")
    processes.wait_for_all()
    return {}


def alone(name: str, folder: Path, *, at_once: int = 0) -> dict[str, Any]:
    work = partial(one_step, name, folder, at_once=at_once)
    return train_together(work, Settings(data_root=folder, device="cpu", workers=0), NoTracking(), what="a step")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The step of every learner, three images in one process and two in another."""
    folder = tmp_path_factory.mktemp("shared")
    machine = Settings(data_root=folder, device="cpu", workers=0, processes=2)
    call(folder / "said", train_together, partial(all_steps, folder), machine, NoTracking(), what="steps")
    return folder


@pytest.mark.parametrize("name", LEARNERS)
def test_no_loss_or_gradient_depends_on_how_a_step_is_cut(name: str, shared: Path, tmp_path: Path) -> None:
    whole = alone(name, tmp_path / "whole")
    gradients = [value for key, value in whole.items() if isinstance(value, Tensor) and not key.startswith("buffer")]
    assert any(gradient.any() for gradient in gradients)
    tolerance = 1e-12 if all(gradient.dtype == torch.float64 for gradient in gradients) else 1e-5
    for cut in (alone(name, tmp_path / "pieces", at_once=2), torch.load(shared / f"{name}.pt", weights_only=True)):
        assert cut.keys() == whole.keys()
        assert cut.pop("loss") == pytest.approx(whole["loss"], rel=1e-6)
        for key, value in cut.items():
            expected = whole[key].double()
            # A true gradient of nothing, as of biases that shift all keys alike, is found as rounding.
            assert (value.double() - expected).norm() <= tolerance * expected.norm().clamp(min=0.01), key


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "ieee"), ("bf16", "none")])
def test_a_training_in_float32_rounds_no_convolution_to_tf32(precision: Any, expected: str, tmp_path: Path) -> None:
    """cuDNN would, unless told otherwise: forward, and in the gradients."""
    learner, inputs = LEARNERS["linear_probe"]()
    feed = MemoryFeed(lambda rows: tuple(each[rows] for each in inputs), np.arange(IMAGES), np.arange(0))
    training = TrainingOptions(epochs=1, batch_size=IMAGES, warmup_epochs=0, precision=precision)
    seen: list[str] = []
    before = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    torch.backends.cudnn.conv.fp32_precision = "none"  # type: ignore[attr-defined]

    def look(*_: object) -> None:
        seen.append(torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]

    learner.register_forward_pre_hook(look)
    next(weight for weight in learner.parameters() if weight.requires_grad).register_hook(look)
    machine = Settings(data_root=tmp_path, device="cpu", workers=0)
    with TrackingReporter(NoTracking(), "a test") as reporter:
        parts = {"folder": tmp_path, "settings": machine, "processes": Processes(torch.device("cpu"))}
        Trainer(learner.float(), feed, training, seed=3, reporter=reporter, **parts).run()  # type: ignore[arg-type]
    torch.backends.cudnn.conv.fp32_precision = before  # type: ignore[attr-defined]
    assert set(seen) == {expected}
    assert len(seen) == 2
