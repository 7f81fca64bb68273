"""Several processes on a machine with two GPUs (that compute nothing): each takes one, in training and in encoding."""

import json
import multiprocessing
import os
import pickle
import socket
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.heads.token_classifier import TokenMLP
from pipeline.engine import processes as of_processes
from pipeline.engine.batches import Batch
from pipeline.engine.errors import PipelineError
from pipeline.engine.gpu_shards import GpuShards
from pipeline.engine.processes import Processes
from pipeline.engine.settings import Settings
from pipeline.engine.shard_mappers import gpus_that_encode, shard_mapper_of
from pipeline.stages.evaluate.protocol import MemoryFeed, judged_together, own_batches
from pipeline.stages.evaluate.tokens_as_input import TokenClassification
from pipeline.training.launch import OUTCOME, WORK
from pipeline.training.loop import Reporter, Trainer
from pipeline.training.options import TrainingOptions
from pipeline.training.worker import _train
from tests.null_gpu.gpus import needs_cuda_build, with_gpus
from tests.null_gpu.seen import visible_gpus


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


def take_part(folder: Path, rank: int, port: int) -> int:
    """Train and judge as a process that torchrun has started does, over gloo, without a look at what nothing
    computed."""
    of_processes._BACKENDS = {"cuda": "cpu:gloo,cuda:gloo"}
    step = Trainer._train_step  # whose answer, whether to stop, is none either
    Trainer._train_step = lambda *given, **named: step(*given, **named) and False  # type: ignore[method-assign]
    Trainer._validate = lambda self: {}  # type: ignore[method-assign]
    Trainer._refuse_non_finite = lambda *_: None  # type: ignore[method-assign]
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    return _train("cuda", "auto", folder)


def both_gpus(root: str) -> dict[str, Any]:
    folder = Path(root)
    (folder / WORK).write_bytes(pickle.dumps(partial(train_and_judge, folder)))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    second = multiprocessing.get_context("fork").Process(target=take_part, args=(folder, 1, port))
    second.start()
    take_part(folder, 0, port)
    second.join()
    notes: dict[str, Any] = json.loads((folder / OUTCOME).read_text())["notes"]
    return notes


@needs_cuda_build
def test_processes_that_train_and_judge_take_a_gpu_each(folder: Path, tmp_path: Path) -> None:
    found, _ = with_gpus(both_gpus, str(tmp_path), folder=folder)
    assert found["devices"] == [["cuda:0", "cuda:0", 0, "cuda:0"], ["cuda:1", "cuda:1", 1, "cuda:1"]]
    assert found["judged"] == list(range(32))  # as copies between host and device are real
    assert found["processes"] == 2


def mappers(root: str) -> dict[str, Any]:
    """Return where images are encoded, by the settings; and what the workers of a local cluster see."""
    found: dict[str, Any] = {}
    machines = {
        "usual": Settings(data_root=Path(root)),
        "two": Settings(data_root=Path(root), processes=2),
        "three": Settings(data_root=Path(root), processes=3),
        "one": Settings(data_root=Path(root), device="cuda:1"),
        "cpu": Settings(data_root=Path(root), processes=2, device="cpu"),
        "cluster": Settings(data_root=Path(root), dask_address="local", dask_workers=3),
    }
    for name, settings in machines.items():
        try:
            mapper = shard_mapper_of(settings)
        except PipelineError as error:
            found[name] = str(error)
        else:
            found[name] = mapper.gpus if isinstance(mapper, GpuShards) else mapper and type(mapper).__name__
        if name == "cluster":
            assert mapper is not None
            found["seen"] = sorted(set(mapper(visible_gpus, range(16))))
            found["together"] = len(gpus_that_encode(settings))
    os.environ["CUDA_VISIBLE_DEVICES"] = "5,7"
    found["some"] = gpus_that_encode(machines["usual"])
    return found


@needs_cuda_build
def test_all_gpus_encode_or_as_many_as_train_or_the_one_that_is_named(folder: Path) -> None:
    found, _ = with_gpus(mappers, str(folder), folder=folder)
    assert found["usual"] == found["two"] == ["0", "1"]
    assert "settings.processes=3: torch finds 2 GPUs here" in found["three"]
    assert found["one"] is found["cpu"] is None
    assert found["some"] == ["5", "7"]
    assert found["cluster"] == "DaskShards"
    assert (found["seen"], found["together"]) == (["0", "1"], 2), "the third worker shares the first GPU"
