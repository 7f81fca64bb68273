"""The trainer: killed, stopped, damaged, spread over processes, and asked for the impossible."""

import atexit
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipeline.engine.errors import PipelineError
from pipeline.engine.processes import Processes
from pipeline.engine.settings import Settings
from pipeline.engine.tracker import NoTracking
from pipeline.training.history import HISTORY, read_history
from pipeline.training.launch import train_together
from pipeline.training.loop import Reporter
from storage.artifact import Artifact
from tests.commands import begin
from tests.forked import call
from tests.stages import TokenizedImages
from tests.trainings import begin_pretraining, small_pretraining, steps_on_disk

LONG = ("training.epochs=10", "training.validation_epochs=3")


@pytest.fixture(scope="module")
def undisturbed(tokenized: TokenizedImages, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_pretraining(tokenized, tmp_path_factory.mktemp("undisturbed"), *LONG).artifact


def test_a_run_that_is_killed_again_and_again_computes_what_one_that_is_not_does(
    tokenized: TokenizedImages, undisturbed: Artifact, tmp_path: Path
) -> None:
    root, moments = tmp_path / "root", random.Random(7)
    for first in (5, 25, 45):
        target = moments.randrange(first, first + 20)
        process = begin_pretraining(tokenized, root, tmp_path, *LONG, checkpoint_steps=4)
        process.wait_until(lambda target=target: steps_on_disk(root) >= target)  # type: ignore[misc]
        process.kill()
    made = small_pretraining(tokenized, root, *LONG).artifact
    assert (made.path / HISTORY).read_bytes() == (undisturbed.path / HISTORY).read_bytes()
    assert made.digest == undisturbed.digest  # the weights too, to the last bit


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_of_the_step_in_which_it_came(
    number: signal.Signals, tokenized: TokenizedImages, undisturbed: Artifact, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    process = begin_pretraining(tokenized, root, tmp_path, *LONG, checkpoint_steps=10_000)
    process.wait_until(lambda: steps_on_disk(root) >= 9)
    process.send(number)
    assert process.wait(60) == -number or "KeyboardInterrupt" in process.err
    [partial] = root.glob("pretrain/*.partial")
    [record] = partial.glob("checkpoints/*.json")
    step = json.loads(record.read_text())["step"]
    assert step == max(entry["step"] for entry in read_history(partial)) >= 9
    assert small_pretraining(tokenized, root, *LONG).artifact.digest == undisturbed.digest


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tokenized: TokenizedImages, undisturbed: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    process = begin_pretraining(tokenized, root, tmp_path, *LONG, checkpoint_steps=3, keep_checkpoints=3)
    process.wait_until(lambda: steps_on_disk(root) >= 20)
    process.kill()
    checkpoints = sorted(root.glob("pretrain/*.partial/checkpoints/step-*.pt"))
    assert 1 < len(checkpoints) <= 4  # three, and perhaps one more that was being written
    for newest in checkpoints[-2:]:
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 1
        newest.write_bytes(data)
    caplog.set_level("INFO", "mapet.training")
    assert small_pretraining(tokenized, root, *LONG).artifact.digest == undisturbed.digest
    assert any("checksum does not match" in record.message for record in caplog.records)
    assert any(record.message.startswith("going on after step") for record in caplog.records)


def curve(artifact: Artifact, name: str) -> list[float]:
    return [entry[name] for entry in read_history(artifact.path) if name in entry]


@pytest.mark.parametrize("objective", ["mapet", "cae"])
def test_two_processes_follow_the_loss_curve_of_one(objective: str, tokenized: TokenizedImages, tmp_path: Path) -> None:
    chosen = f"pretrain.objective={objective}"
    alone = small_pretraining(tokenized, tmp_path / "one", chosen).artifact
    # One of them with torchrun and its workers as a user starts them, the other forked.
    train = small_pretraining if objective == "mapet" else partial(call, tmp_path / "said", small_pretraining)
    together = train(tokenized, tmp_path / "two", chosen, processes=2).artifact
    assert together.notes["processes"] == 2
    for name in ("loss", "token_accuracy", "gradient_norm", "val_token_loss", "learning_rate"):
        assert curve(together, name) == pytest.approx(curve(alone, name), rel=1e-3), name
    assert together.fingerprint == alone.fingerprint


def test_two_nodes_that_meet_at_a_rendezvous_follow_it_too(tokenized: TokenizedImages, tmp_path: Path) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{listening.getsockname()[1]}"
    cluster = {"nodes": "2", "rendezvous": meeting, "device": "cpu"}
    words = [f"settings.{name}={value}" for name, value in {**cluster, "node_rank": "1"}.items()]
    other = begin(tmp_path / "other", "pretrain", "demo", *words)
    together = small_pretraining(tokenized, tmp_path / "two", nodes=2, rendezvous=meeting).artifact
    assert other.wait(60) == 0
    alone = small_pretraining(tokenized, tmp_path / "one").artifact
    assert curve(together, "loss") == pytest.approx(curve(alone, "loss"), rel=1e-3)


def test_several_nodes_without_a_place_to_meet_are_refused(tokenized: TokenizedImages, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"settings\.nodes=2 needs settings\.rendezvous=HOST:PORT"):
        small_pretraining(tokenized, tmp_path, nodes=2)


def test_accumulated_gradients_are_those_of_the_whole_batch(tokenized: TokenizedImages, tmp_path: Path) -> None:
    whole = small_pretraining(tokenized, tmp_path / "whole").artifact
    pieces = small_pretraining(tokenized, tmp_path / "pieces", micro_batch_size=3).artifact
    assert curve(pieces, "loss") == pytest.approx(curve(whole, "loss"), rel=1e-3)
    assert curve(pieces, "gradient_norm") == pytest.approx(curve(whole, "gradient_norm"), rel=1e-3)


@pytest.mark.parametrize(
    "setting", [{"workers": 2}, {"gradient_checkpointing": True}, {"head_rows": 7}, {"checkpoint_steps": 1}]
)
def test_settings_of_the_machine_change_no_curve(
    setting: dict[str, int], tokenized: TokenizedImages, tmp_path: Path
) -> None:
    plain = small_pretraining(tokenized, tmp_path / "plain").artifact
    other = small_pretraining(tokenized, tmp_path / "other", **setting).artifact
    assert curve(other, "loss") == pytest.approx(curve(plain, "loss"), rel=1e-5)
    assert other.fingerprint == plain.fingerprint


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tokenized: TokenizedImages, tmp_path: Path) -> None:
    exploding = ("training.peak_learning_rate=1e30", "training.first_learning_rate=1e-4", "training.epochs=4")
    with pytest.raises(PipelineError, match=r"step \d+: the (loss|gradient) is not finite \(.*rows") as stopped:
        small_pretraining(tokenized, tmp_path, *exploding, checkpoint_steps=1)
    assert "the last checkpoint is kept" in str(stopped.value)
    step = int(str(stopped.value).split("step ")[1].split(":")[0])
    [partial] = tmp_path.glob("pretrain/*.partial")
    kept = sorted(partial.glob("checkpoints/*.json"))
    assert json.loads(kept[-1].read_text())["step"] == step - 1
    assert read_history(partial)[-1]["step"] == step - 1


def test_what_is_saved_is_said_as_it_is(tokenized: TokenizedImages, tmp_path: Path) -> None:
    """Whatever was to be saved when: a checkpoint of an earlier part of the run, or none."""
    exploding = ("training.peak_learning_rate=1e30", "training.first_learning_rate=1e-4", "training.epochs=4")
    with pytest.raises(PipelineError, match=r"not finite.*nothing is saved yet"):
        small_pretraining(tokenized, tmp_path / "none", *exploding)
    for checkpoint_steps in (1, 500):
        with pytest.raises(PipelineError, match=r"not finite.*the last checkpoint is kept \(step \d+\)"):
            small_pretraining(tokenized, tmp_path / "some", *exploding, checkpoint_steps=checkpoint_steps)


def test_an_error_in_one_of_several_processes_is_the_same_sentence(tokenized: TokenizedImages, tmp_path: Path) -> None:
    exploding = ("training.peak_learning_rate=1e30", "training.first_learning_rate=1e-4", "training.epochs=4")
    with pytest.raises(PipelineError, match=r"^step \d+: the (loss|gradient) is not finite"):
        call(tmp_path / "said", small_pretraining, tokenized, tmp_path, *exploding, processes=2)


def work_that_needs_too_much(processes: Processes, _: Reporter) -> Mapping[str, Any]:
    if processes.rank == 1:
        torch.empty(1 << 60, dtype=torch.uint8)
    return {"ranks": processes.gather(processes.rank)}


def test_too_little_memory_in_one_of_several_processes_is_a_sentence(tmp_path: Path) -> None:
    machine = Settings(data_root=tmp_path, device="cpu", processes=2)
    with pytest.raises(PipelineError, match=r"^this machine's memory does not suffice for training; .* to less$"):
        call(tmp_path / "said", train_together, work_that_needs_too_much, machine, NoTracking(), what="nothing")


def work_that_ends_badly(processes: Processes, _: Reporter) -> Mapping[str, Any]:
    """End as threads of torch may: they abort a process that is on its way out."""
    atexit.register(os.abort)
    return {"ranks": processes.gather(processes.rank)}


def test_a_training_that_is_done_does_not_die_of_its_process_coming_to_an_end(tmp_path: Path) -> None:
    machine = Settings(data_root=tmp_path, device="cpu", processes=2)
    assert train_together(work_that_ends_badly, machine, NoTracking(), what="nothing") == {"ranks": [0, 1]}


@pytest.mark.parametrize("worker", [("torchrun", "0", "--help"), ("cpu", "auto", "-", "0")])
def test_a_process_that_was_started_by_one_that_is_gone_ends(worker: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "pipeline.training.worker", *worker]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")


def test_no_process_outlives_the_one_that_started_it(tokenized: TokenizedImages, tmp_path: Path) -> None:
    root = tmp_path / "root"
    process = begin_pretraining(tokenized, root, tmp_path, "training.epochs=1000", processes=2, checkpoint_steps=5)
    process.wait_until(lambda: steps_on_disk(root) >= 6)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 3  # torchrun and its two
    process.kill()
    deadline = time.monotonic() + 60
    while any(map(lives, family)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
