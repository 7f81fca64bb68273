"""Processes that work together: who does what, and how all of them end when one fails, in two that torchrun starts."""

import errno
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from models.heads.token_classifier import TokenMLP
from pipeline.configuration.config import EvaluateConfig
from pipeline.configuration.overrides import apply_overrides
from pipeline.engine import processes as of_processes
from pipeline.engine.batches import Batch, in_groups
from pipeline.engine.errors import PipelineError
from pipeline.engine.processes import Processes
from pipeline.engine.settings import Settings
from pipeline.engine.tracker import NoTracking
from pipeline.stages.evaluate.protocol import EvaluationJob, MemoryFeed, judged_together
from pipeline.stages.evaluate.protocols import PROTOCOLS
from pipeline.stages.evaluate.scores import CORRECT
from pipeline.stages.evaluate.subject import Subject
from pipeline.stages.evaluate.tokens_as_input import TokenClassification
from pipeline.training.launch import train_together
from pipeline.training.loop import Reporter, Trainer
from pipeline.training.options import TrainingOptions
from tests.forked import call
from tests.stages import TokenizedImages

Fail = Callable[[], object]


def in_two(work: Callable[[Processes, Reporter], Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    machine = Settings(data_root=folder, device="cpu", workers=0, processes=2)
    notes: dict[str, Any] = call(folder / "said", train_together, work, machine, NoTracking(), what="a test")
    return notes


# --------------------------------------------------------------------------------------------- sharing and joining


def join_squares(processes: Processes, _: Reporter) -> dict[str, Any]:
    """Join the squares of 1 to 7 rows, in batches of two, exchanged a few bytes at a time."""
    found: dict[str, Any] = {}
    for at_once in (1, 24, 2**20):
        of_processes._BYTES_AT_ONCE = at_once
        for rows in range(1, 8):
            for kind in (torch.float32, torch.int64, torch.bool):
                own = processes.share(np.arange(rows))
                parts = [torch.from_numpy(some)[:, None].expand(-1, 3).to(kind) for some in in_groups(own, 2)]
                whole = processes.joined(parts, rows)
                expected = torch.arange(rows)[:, None].expand(-1, 3).to(kind)
                assert whole.dtype == kind
                assert torch.equal(whole, expected), (at_once, rows, kind)
                found[f"{at_once} {rows} {kind}"] = len(own)
    alone: list[int] = []
    processes.by_first(lambda: alone.append(processes.rank))
    return {"shares": processes.gather(found), "alone": processes.gather(alone)}


def test_shares_that_are_joined_are_the_whole_in_its_order_in_every_process(tmp_path: Path) -> None:
    notes = in_two(join_squares, tmp_path)
    first, second = notes["shares"]
    assert len(first) == 63
    assert all(first[name] + second[name] == int(name.split()[1]) for name in first)
    assert second["1 1 torch.bool"] == 0
    assert notes["alone"] == [[0], []]


def images_seen(seen: list[int], module: nn.Module, given: tuple[Tensor, ...]) -> None:
    if isinstance(module, PatchEmbed):
        seen.append(len(given[0]))


def run_and_look(jobs: Mapping[str, EvaluationJob], processes: Processes, reporter: Reporter) -> dict[str, Any]:
    left, seen = {}, {}
    for name, job in jobs.items():
        job.folder.mkdir(exist_ok=True)
        counts: list[int] = []
        with register_module_forward_pre_hook(partial(images_seen, counts)):
            PROTOCOLS[name].load().run(job, processes, reporter)
        gc.collect()
        left[name] = sum(isinstance(one, DistributedDataParallel) for one in gc.get_objects())
        seen[name] = processes.gather(sum(counts))
    held = processes.wrap(nn.Linear(2, 2))
    assert any(one is held for one in gc.get_objects())
    return {"left": left, "seen": seen}


def test_protocols_share_images_evenly_and_leave_no_network_that_averages_gradients(
    tokenized: TokenizedImages, tmp_path: Path
) -> None:
    """The threads of gloo that such a one keeps would outlive the process group, and abort a process that ends."""
    names = ("fine_tune", "linear_probe", "frozen_features", "tokens_as_input")
    training = ("epochs=1", "batch_size=16", "warmup_epochs=0", "precision=fp32")
    short = [f"{name}.training.{option}" for name in names for option in training]
    config = apply_overrides(EvaluateConfig(), ["backbone.name=vit_demo", "backbone.image_size=64", *short])
    machine = Settings(data_root=tmp_path, device="cpu", workers=0, processes=2)
    jobs = {
        name: EvaluationJob(
            options=getattr(config, name),
            subject=Subject(config.backbone, None),
            images=tokenized.images,
            source=tokenized.source,
            tokens=tokenized.tokens,
            folder=tmp_path / name,
            settings=machine,
        )
        for name in names
    }
    notes = in_two(partial(run_and_look, jobs), tmp_path)
    assert notes["left"] == dict.fromkeys(names, 0)
    # Of 60 training images the frozen features of each once, else 3 steps of 16; 12 are validated, and judged.
    assert notes["seen"]["frozen_features"] == [36, 36]
    for name in ("fine_tune", "linear_probe"):
        assert notes["seen"][name] == [24 + 6 + 6] * 2
    assert notes["seen"]["tokens_as_input"] == [0, 0]
    # Untrained features are the same in one process, and so is what their neighbours say of each image.
    one = Settings(data_root=tmp_path, device="cpu", workers=0)
    alone = replace(jobs["frozen_features"], folder=tmp_path / "alone", settings=one)
    train_together(partial(run_and_look, {"frozen_features": alone}), one, NoTracking(), what="a test")
    apart, whole = (np.load(job.folder / CORRECT)["knn_top1"] for job in (jobs["frozen_features"], alone))
    np.testing.assert_array_equal(apart, whole)
    assert 0 < whole.sum() < len(whole)


# ----------------------------------------------------------------------------------------------- when one fails


class Spoilt(TokenClassification):
    """Fails in one process, in its third step."""

    def __init__(self, fail: Fail, rank: int) -> None:
        super().__init__(TokenMLP(8, 2, width=4))
        self._fail, self._rank, self._calls = fail, rank, 0

    def forward(self, tokens: Tensor, labels: Tensor) -> Any:
        self._calls += 1
        if self._rank == 1 and self._calls == 3:
            self._fail()
        return super().forward(tokens, labels)


def spoilt_step(fail: Fail, folder: Path, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    rows, options = np.arange(64), TrainingOptions(epochs=9, batch_size=4, warmup_epochs=0, precision="fp32")
    feed = MemoryFeed(lambda some: (torch.zeros(len(some), 6).long(), torch.zeros(len(some)).long()), rows, rows)
    machine = Settings(data_root=folder, device="cpu", workers=0, processes=2)
    parts = {"folder": folder, "settings": machine, "processes": processes, "reporter": reporter}
    return Trainer(Spoilt(fail, processes.rank), feed, options, seed=0, **parts).run()  # type: ignore[arg-type]


def spoilt_judging(fail: Fail, _folder: Path, processes: Processes, _: Reporter) -> dict[str, Any]:
    def batches() -> Iterator[Batch]:
        for rows in in_groups(processes.share(np.arange(40)), 4):
            yield Batch(rows, (torch.from_numpy(rows),))

    def judge(batch: Batch) -> Tensor:
        if processes.rank == 1 and batch.rows[0] > 20:
            fail()
        return batch.inputs[0]

    return {"found": judged_together(torch.nn.Identity(), batches(), judge, processes, total=40).tolist()}


def say() -> NoReturn:
    raise PipelineError("image 7 is upside down; turn it")


def stumble() -> NoReturn:
    raise KeyError("no such thing")


def fill_the_disk() -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device", "/data/scores.json")


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def take_all_memory() -> None:
    torch.empty(2**60)


MIDDLES = {"step": spoilt_step, "judging": spoilt_judging}
KILLED = "a training process was killed by SIGKILL, as Linux does when memory is short; what is done is kept"


@pytest.mark.parametrize(
    ("middle", "fail", "sentence"),
    [
        ("step", say, "image 7 is upside down; turn it"),
        ("judging", say, "image 7 is upside down; turn it"),
        ("step", stumble, "a training process failed (KeyError: 'no such thing'); its traceback is above"),
        ("judging", stumble, "a training process failed (KeyError: 'no such thing'); its traceback is above"),
        ("step", be_killed, KILLED),
        ("judging", be_killed, KILLED),
        ("step", take_all_memory, "this machine's memory does not suffice for 2 images at once"),
    ],
)
def test_one_process_that_fails_ends_all_of_them_with_its_sentence(
    middle: str, fail: Fail, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(PipelineError) as raised:
        in_two(partial(MIDDLES[middle], fail, tmp_path), tmp_path)
    assert str(raised.value).startswith(sentence)
    said = (tmp_path / "said" / "err").read_text()
    assert said.count("Traceback") == said.count("in stumble") == (fail is stumble)
    assert "Connection closed" not in said


def test_a_full_disk_in_one_process_is_the_error_of_the_system_that_it_was(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/data/scores\.json'") as raised:
        in_two(partial(spoilt_judging, fill_the_disk, tmp_path), tmp_path)
    assert raised.value.errno == errno.ENOSPC


def fail_beside_one_that_hears_nothing(folder: Path, processes: Processes, _: Reporter) -> dict[str, Any]:
    """Stand as a process does in NCCL that waits for another one: no signal but SIGKILL reaches it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    processes.wait_for_all()
    if processes.rank == 1:
        (folder / "failed").touch()
        say()
    time.sleep(300)
    return {}


def test_a_process_that_hears_nothing_does_not_outlive_one_that_fails_for_long(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="image 7 is upside down"):
        in_two(partial(fail_beside_one_that_hears_nothing, tmp_path), tmp_path)
    assert time.time() - (tmp_path / "failed").stat().st_mtime < 25  # torchrun by itself: 30
