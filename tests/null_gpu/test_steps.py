"""What a training step asks of a GPU: waits, kernels of the block masks, graphs of its compiled form.

Counted on a GPU that computes nothing.
"""

import ctypes
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.objectives.block_masking import ROUNDS, block_masks
from models.vqkd.codebook import EmaCodebook
from pipeline.engine.batches import Batch, load_in_workers
from pipeline.engine.processes import Processes
from pipeline.engine.settings import Settings
from pipeline.engine.shared_memory import loading_ahead
from pipeline.stages.evaluate.protocol import MemoryFeed
from pipeline.training.loop import Trainer
from pipeline.training.options import TrainingOptions
from tests.null_gpu.gpus import needs_cuda_build, with_gpus
from tests.pipeline.learners import IMAGES, LEARNERS, Learner

STEPS = 3
real_step = Trainer._train_step


class Waits:
    """A reporter that notes how often the device has been waited for by the end of each step."""

    def __init__(self) -> None:
        self.counts = list[int]()

    def begin(self, images: int, *, done: int) -> None:
        pass

    def metrics(self, values: object, step: int) -> None:
        pass

    def advance(self, images: int, note: str) -> None:
        self.counts.append(ctypes.CDLL(None).null_syncs())


def on_gpu(name: str) -> Learner:
    """Move it to the GPU as float32, with BatchNorm as it is in training, and pinned as batches are."""
    learner, inputs = LEARNERS[name]()
    for module in learner.modules():
        module.__dict__.pop("train", None)  # which the CPU's tests overrule
    if isinstance(teacher := getattr(learner, "teacher", None), nn.Module):
        teacher.to("cuda")
    floats = tuple(each.float() if each.is_floating_point() else each for each in inputs)
    return learner.float(), tuple(each.pin_memory() for each in floats)


def step_without_numbers(trainer: Trainer, batch: Batch, *, stop: bool) -> bool:
    """Return the real one, but that what it reads on this device says nothing about stopping."""
    real_step(trainer, batch, stop=stop)
    return False


def waits_of(name: str, precision: str) -> list[int]:
    """Count the waits of every step but the first, in two pieces, data and reports included."""
    learner, inputs = on_gpu(name)
    feed = MemoryFeed(partial(picked, inputs), np.arange(STEPS * IMAGES), np.arange(0))
    training = TrainingOptions(
        epochs=1,
        batch_size=IMAGES,
        warmup_epochs=0,
        precision=precision,
        report_steps=1,  # type: ignore[arg-type]
    )
    with TemporaryDirectory() as folder:
        machine = Settings(data_root=Path(folder), device="cuda", workers=0, micro_batch_size=3)
        gpu, waits = Processes(torch.device("cuda")), Waits()
        Trainer(
            learner, feed, training, seed=3, folder=Path(folder), settings=machine, processes=gpu, reporter=waits
        ).run()
    return np.diff(waits.counts).tolist()


def picked(inputs: tuple[torch.Tensor, ...], rows: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(each[rows % IMAGES].pin_memory() for each in inputs)


def kernels_of_masks(masked: int, tries: int) -> int:
    null_gpu, seeds = ctypes.CDLL(None), torch.arange(64, device="cuda")
    before = null_gpu.null_launches()
    block_masks(seeds, (14, 14), masked, tries=tries)
    return int(null_gpu.null_launches() - before)


def breaks(name: str) -> list[str]:
    """Return why the compiled step is not one graph."""
    learner, inputs = on_gpu(name)
    explained = torch._dynamo.explain(learner.to("cuda"))(*(each.cuda() for each in inputs))
    return [str(found.reason) for found in explained.break_reasons]


def pinned_by_threads() -> list[bool]:
    """Tell of each tensor of a batch that threads load whether it lies in pinned memory."""
    settings = Settings(device="cuda", workers=1)
    ahead = loading_ahead(1, settings, in_threads=True)
    loading = load_in_workers(lambda row: Batch(np.array([row]), (torch.zeros(1), torch.ones(1))), [7], settings, ahead)
    return [tensor.is_pinned() for batch in loading for tensor in batch.tensors()]


def counts() -> dict[str, Any]:
    Trainer._train_step = step_without_numbers  # type: ignore[method-assign]
    Trainer._refuse_non_finite = lambda *_: None  # type: ignore[method-assign]
    EmaCodebook.perplexity = EmaCodebook.used_share  # type: ignore[assignment]  # its kernel is compiled when it runs
    waits = {f"{name} {precision}": waits_of(name, precision) for name in LEARNERS for precision in ("bf16", "fp16")}
    kernels = [kernels_of_masks(75, 10), kernels_of_masks(98, ROUNDS)]
    return {"waits": waits, "kernels": kernels, "breaks": breaks("mapet"), "pinned": pinned_by_threads()}


@pytest.fixture(scope="module")
def counted(folder: Path) -> dict[str, Any]:
    return with_gpus(counts, gpus=1, folder=folder)[0]


@needs_cuda_build
def test_a_step_of_any_learner_waits_for_the_gpu_once(counted: dict[str, Any]) -> None:
    waits = counted["waits"]
    assert len(waits) == 2 * len(LEARNERS)
    assert waits == {name: [1] * (STEPS - 1) for name in waits}


@needs_cuda_build
def test_what_threads_load_for_a_gpu_lies_in_pinned_memory(counted: dict[str, Any]) -> None:
    assert counted["pinned"] == [True, True]


@needs_cuda_build
def test_block_masks_are_few_kernels_for_their_48_rounds(counted: dict[str, Any]) -> None:
    assert max(counted["kernels"]) < 700, "with everything in the rounds they were 1,710"


@needs_cuda_build
def test_a_compiled_step_breaks_only_where_something_is_not_to_be_compiled(counted: dict[str, Any]) -> None:
    assert counted["breaks"]
    assert all("torch.compiler.disable" in reason for reason in counted["breaks"]), counted["breaks"]
