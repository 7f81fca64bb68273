"""Several processes on a machine with two GPUs (that compute nothing): each takes one, in training and in encoding."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.heads.token_classifier import TokenMLP
from pipeline.engine.batches import Batch
from pipeline.engine.errors import PipelineError
from pipeline.engine.processes import Processes
from pipeline.engine.scale_out import shard_mapper_of
from pipeline.engine.settings import Settings
from pipeline.engine.tracker import NoTracking
from pipeline.stages.evaluate.protocol import MemoryFeed, judged_together, own_batches
from pipeline.stages.evaluate.tokens_as_input import TokenClassification
from pipeline.training.launch import train_together
from pipeline.training.loop import Reporter, Trainer
from pipeline.training.options import TrainingOptions
from tests.null_gpu.gpus import needs_cuda_build, with_gpus

# In every process that is started from here: gloo in place of NCCL, and no look at numbers that nothing computed.
SITE = """
from pipeline.engine import processes
from pipeline.training.loop import Trainer
processes._BACKENDS = {"cuda": "cpu:gloo,cuda:gloo"}
Trainer._validate = lambda self: {}
Trainer._refuse_non_finite = lambda *_: None
step = Trainer._train_step  # whose answer, whether to stop, nothing computed either
Trainer._train_step = lambda *given, **named: step(*given, **named) and False
"""


def train_and_judge(folder: Path, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    rows, options = np.arange(32), TrainingOptions(epochs=1, batch_size=8, warmup_epochs=0, precision="fp32")
    feed = MemoryFeed(lambda some: (torch.zeros(len(some), 6).long(), torch.from_numpy(some)), rows, rows)
    machine, learner = Settings(data_root=folder, workers=0, processes=2), TokenClassification(TokenMLP(8, 2, width=4))
    parts = {"folder": folder, "settings": machine, "processes": processes, "reporter": reporter}
    notes = Trainer(learner, feed, options, seed=0, **parts).run()  # type: ignore[arg-type]
    seen: list[str] = []

    def judge(batch: Batch) -> Tensor:
        seen.append(str(batch.inputs[1].device))
        return batch.inputs[1]

    own = own_batches(feed, feed.val_rows, processes, size=8)
    judged = judged_together(torch.nn.Identity(), own, judge, processes, total=len(rows))
    mine = [str(processes.device), str(next(learner.parameters()).device), torch.cuda.current_device(), *set(seen)]
    return {"devices": processes.gather(mine), "judged": judged.tolist(), "processes": notes["processes"]}


def both_gpus(root: str) -> dict[str, Any]:
    folder = Path(root) / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE)
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{Path.cwd()}"
    machine = Settings(data_root=Path(root), workers=0, processes=2)
    return train_together(partial(train_and_judge, Path(root)), machine, NoTracking(), what="a test")


@needs_cuda_build
def test_processes_that_train_and_judge_take_a_gpu_each(folder: Path) -> None:
    found, _ = with_gpus(both_gpus, str(folder), folder=folder)
    assert found["devices"] == [["cuda:0", "cuda:0", 0, "cuda:0"], ["cuda:1", "cuda:1", 1, "cuda:1"]]
    assert found["judged"] == list(range(32))  # as copies between host and device are real
    assert found["processes"] == 2


def gpus_that_encode(root: str) -> list[Any]:
    found = shard_mapper_of(Settings(data_root=Path(root), processes=2))
    assert found is not None
    seen: list[Any] = sorted(map(list, set(found(visible_to_a_worker, list(range(8))))))
    try:
        shard_mapper_of(Settings(data_root=Path(root), processes=3))
    except PipelineError as error:
        seen.append(str(error))
    return [*seen, shard_mapper_of(Settings(data_root=Path(root), processes=2, device="cpu"))]


def visible_to_a_worker(_: Sequence[int]) -> tuple[str, int]:
    return os.environ["CUDA_VISIBLE_DEVICES"], torch.cuda.device_count()


@needs_cuda_build
def test_as_many_gpus_encode_as_train(folder: Path) -> None:
    [first, second, refused, on_the_cpu], _ = with_gpus(gpus_that_encode, str(folder), folder=folder)
    assert (first, second) == (["0", 1], ["1", 1])
    assert "settings.processes=3: torch finds 2 GPUs here" in refused
    assert on_the_cpu is None
