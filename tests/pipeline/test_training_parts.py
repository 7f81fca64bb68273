"""The parts of a training run by themselves: plan, schedule, parameter groups, jitter, history."""

import json
import math
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from models.objectives.mapet import MaPeT
from models.objectives.options import MaPeTOptions
from models.vit.backbones import build_backbone
from models.vit.options import BackboneOptions
from pipeline.data.augmentation import colour_jitter
from pipeline.data.share import Share
from pipeline.engine.batches import Batch, put_together, silence_broken_pipes
from pipeline.engine.errors import PipelineError
from pipeline.engine.processes import Processes
from pipeline.engine.threads import threads_for
from pipeline.stages.evaluate.evaluation_options import SegmentationOptions
from pipeline.stages.evaluate.protocol import judged_together
from pipeline.training.energy import EnergyMeter
from pipeline.training.history import HISTORY, History, last_of_curves, read_history
from pipeline.training.interrupts import HeldInterrupts
from pipeline.training.meters import RunningMeans
from pipeline.training.optimization import Schedule, build_optimizer
from pipeline.training.options import TrainingOptions
from pipeline.training.plan import StepPlan
from pipeline.training.token_prediction import TokenPrediction, pretraining_square
from pipeline.training.vqkd_options import FitVQKDOptions

ROWS = np.arange(100, 153)  # 53 images


def small(**options: object) -> TrainingOptions:
    return TrainingOptions.model_validate({"batch_size": 8, "epochs": 3, "warmup_epochs": 1, **options})


def test_an_epoch_takes_every_image_once_except_those_that_do_not_fill_a_step() -> None:
    shares = list(StepPlan(ROWS, small(), seed=0).shares(0))
    assert [share.step for share in shares] == list(range(18))
    for epoch in range(3):
        taken = np.concatenate([share.rows for share in shares if share.epoch == epoch])
        assert len(taken) == len(set(taken.tolist())) == 48
        assert set(taken.tolist()) <= set(ROWS.tolist())


def test_epochs_differ_and_seeds_differ() -> None:
    first, other = (list(StepPlan(ROWS, small(), seed=seed).shares(0)) for seed in (0, 1))
    assert first[0].rows.tolist() != first[6].rows.tolist()
    assert first[0].rows.tolist() != other[0].rows.tolist()


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_share_the_images_of_each_step(processes: int) -> None:
    plan = StepPlan(ROWS, small(), seed=0)
    parts = [list(plan.shares(0, process=rank, processes=processes)) for rank in range(processes)]
    for step, whole in enumerate(plan.shares(0)):
        assert np.concatenate([part[step].rows for part in parts]).tolist() == whole.rows.tolist()


def test_a_resumed_plan_goes_on_with_the_same_images() -> None:
    plan = StepPlan(ROWS, small(), seed=0)
    whole, rest = list(plan.shares(0)), list(plan.shares(7))
    assert [share.rows.tolist() for share in rest] == [share.rows.tolist() for share in whole[7:]]


def test_repeated_images_stand_far_apart_in_a_step_and_an_epoch_is_as_long() -> None:
    plain, plan = (StepPlan(ROWS, small(), seed=0, repeats=repeats) for repeats in (1, 3))
    assert (plan.steps, plan.steps_per_epoch) == (plain.steps, plain.steps_per_epoch)
    shares = list(plan.shares(0))
    for share in shares:
        images = share.rows[:3].tolist()
        assert share.rows.tolist() == [*images, *images, *images[:2]]  # steps of 8
        assert share.copies.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    seen = [row for share in shares if share.epoch == 0 for row in share.rows[:3].tolist()]
    assert len(seen) == len(set(seen)) == 18
    parts = [list(plan.shares(0, process=rank, processes=3)) for rank in range(3)]
    for step, whole in enumerate(shares):
        assert np.concatenate([part[step].rows for part in parts]).tolist() == whole.rows.tolist()
        assert np.concatenate([part[step].copies for part in parts]).tolist() == whole.copies.tolist()


def test_too_few_images_for_a_step_are_refused_with_the_value_to_set() -> None:
    with pytest.raises(PipelineError, match=r"5 training images do not fill .*batch_size=8; set it to 5 or less"):
        StepPlan(ROWS[:5], small(), seed=0)


def rates(options: TrainingOptions, *, steps_per_epoch: int, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=options.peak_learning_rate)
    schedule = Schedule(optimizer, options, steps_per_epoch=steps_per_epoch)
    return [schedule.set(step) for step in range(steps)]


def paper_rate(epoch: float) -> float:
    """Compute the rate of Table 8: linear from 1e-6 to 1.5e-3 in 10 epochs, then the cosine of all 300 epochs down to
    1e-5."""
    if epoch < 10:
        return 1e-6 + (1.5e-3 - 1e-6) * epoch / 10
    return 1e-5 + (1.5e-3 - 1e-5) * (1 + math.cos(math.pi * epoch / 300)) / 2


def test_the_learning_rate_follows_table_8() -> None:
    expected = [paper_rate(step / 25) for step in range(300 * 25)]
    assert rates(TrainingOptions(), steps_per_epoch=25, steps=300 * 25) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", ["step", "epoch"])
def test_the_cosine_is_timms_to_the_last_bit(schedule: str) -> None:
    options = small(epochs=7, warmup_epochs=2, schedule=schedule)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=options.peak_learning_rate)
    theirs = CosineLRScheduler(
        optimizer, t_initial=7, lr_min=1e-5, warmup_t=2, warmup_lr_init=1e-6, warmup_prefix=False
    )
    expected = []
    for step in range(7 * 9):
        theirs.step(step // 9 if schedule == "epoch" else step / 9)
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates(options, steps_per_epoch=9, steps=7 * 9) == expected


@pytest.mark.parametrize(("warmup", "epochs"), [(10, 100), (1, 3), (0, 2)])
def test_the_learning_rate_of_a_vqkd_is_beit_v2s(warmup: int, epochs: int) -> None:
    """Up from 0 to the peak, which the last step of the warm-up has; then the cosine of all that remains."""
    given = {"warmup_epochs": warmup, "epochs": epochs}
    options = TrainingOptions.model_validate({**FitVQKDOptions().training.model_dump(), **given})
    first, rest = 7 * warmup, np.arange(7 * (epochs - warmup))
    cosine = 1e-5 + (2e-4 - 1e-5) * (1 + np.cos(np.pi * rest / len(rest))) / 2
    expected = [*np.linspace(0, 2e-4, first), *cosine]
    assert rates(options, steps_per_epoch=7, steps=7 * epochs) == pytest.approx(expected, rel=1e-9, abs=1e-18)


def test_the_learning_rate_follows_table_10() -> None:
    """From 5e-11 to 5e-5 in 1,500 steps; then what is left of 160,000 steps, linearly. 1,263 steps are an epoch."""
    options = SegmentationOptions().training
    got = rates(options, steps_per_epoch=1263, steps=160_000)
    assert got[0] == pytest.approx(5e-11)
    assert got[750] == pytest.approx(2.5e-5, rel=1e-5)
    assert np.argmax(got) == 1499
    assert got[1500] == pytest.approx(5e-5 * 158_500 / 160_000)
    assert got[80_000] == pytest.approx(2.5e-5)
    assert got[-1] == pytest.approx(5e-5 / 160_000)
    assert options.total_steps(1263) == 160_000


def test_a_linear_decay_ends_at_the_lowest_rate() -> None:
    options = small(epochs=None, steps=10, warmup_epochs=0, decay="linear", peak_learning_rate=1.0)
    got = rates(options.model_copy(update={"lowest_learning_rate": 0.5}), steps_per_epoch=4, steps=10)
    assert got == pytest.approx([1 - 0.05 * step for step in range(10)])


def test_a_run_of_so_many_steps_ends_within_an_epoch() -> None:
    shares = list(StepPlan(ROWS, small(epochs=None, steps=8), seed=0).shares(0))
    assert [share.epoch for share in shares] == [0] * 6 + [1] * 2
    whole = list(StepPlan(ROWS, small(), seed=0).shares(0))[:8]
    assert [share.rows.tolist() for share in shares] == [share.rows.tolist() for share in whole]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 8}, "epochs 3 and steps 8; give one of them"),
        ({"epochs": None}, "epochs None and steps None; give one of them"),
        ({"warmup_steps": 2}, "warmup_epochs 1 and warmup_steps 2; give one of them"),
        ({"epochs": None, "steps": 8, "warmup_epochs": 0, "warmup_steps": 9}, "warmup_steps 9 is more than steps 8"),
    ],
)
def test_lengths_that_contradict_each_other_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**given)


def test_the_learning_rate_can_change_once_an_epoch_as_released() -> None:
    expected = [paper_rate(step // 25) for step in range(300 * 25)]
    got = rates(TrainingOptions(schedule="epoch"), steps_per_epoch=25, steps=300 * 25)
    assert got == pytest.approx(expected, rel=1e-9)


def test_the_schedule_minds_the_scale_of_a_parameter_group() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([{"params": [weight], "lr_scale": 0.5}], lr=1.0)
    Schedule(optimizer, small(peak_learning_rate=1.0, warmup_epochs=0), steps_per_epoch=1).set(0)
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("images", "most", "sizes"), [(7, 3, [3, 2, 2]), (9, 4, [3, 3, 3]), (8, 8, [8]), (5, 8, [5]), (3, 1, [1, 1, 1])]
)
def test_a_step_is_computed_in_even_pieces(images: int, most: int, sizes: list[int]) -> None:
    batch = Batch(np.arange(images), (torch.arange(images), 10 * torch.arange(images)))
    pieces = list(batch.split(most))
    assert [len(piece) for piece in pieces] == sizes
    assert np.concatenate([piece.rows for piece in pieces]).tolist() == list(range(images))
    assert torch.cat([piece.inputs[1] for piece in pieces]).tolist() == [10 * i for i in range(images)]


def test_a_batch_in_pieces_is_joined_with_what_each_image_has_of_its_own() -> None:
    lengths = np.array([2, 0, 3, 1, 0])
    owner = np.repeat(np.arange(5), lengths)
    batch = Batch(np.arange(5) + 7, (torch.arange(5), torch.from_numpy(owner)), lengths)
    pieces = list(batch.split(2))
    assert [piece.inputs[1].unique().tolist() for piece in pieces] == [[0], [2, 3], []]
    [joined] = put_together([replace(piece, is_last=piece is pieces[-1]) for piece in pieces])
    assert joined.rows.tolist() == batch.rows.tolist()
    assert joined.lengths is not None
    assert joined.lengths.tolist() == lengths.tolist()
    for ours, expected in zip(joined.inputs, batch.inputs, strict=True):
        assert torch.equal(ours, expected)


def test_batches_are_put_together_each_of_its_own_pieces() -> None:
    ends = (False, True, True, False, False, True)
    pieces = [Batch(np.array([place]), (torch.tensor([place]),), is_last=end) for place, end in enumerate(ends)]
    assert [batch.rows.tolist() for batch in put_together(pieces)] == [[0, 1], [2], [3, 4, 5]]


@pytest.mark.parametrize("images", [1, 2, 3, 64])
@pytest.mark.parametrize(("first", "end"), [(0, None), (3, 10), (5, 11), (4, 4)])
def test_pieces_of_a_share_make_it_up_and_keep_pairs_together(images: int, first: int, end: int | None) -> None:
    share = Share(0, 0, np.arange(11) + 100, first, end, repeats=2)
    pieces = list(share.pieces(images))
    assert np.concatenate([piece.rows for piece in pieces]).tolist() == share.rows.tolist()
    assert np.concatenate([piece.copies for piece in pieces]).tolist() == share.copies.tolist()
    assert all(len(piece.rows) <= images for piece in pieces)
    assert images == 1 or all(piece.first % 2 == 0 for piece in pieces[1:])


def test_more_warm_up_than_epochs_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup_epochs 4 is more than epochs 3"):
        small(warmup_epochs=4)


def test_weight_decay_spares_what_the_released_code_spares() -> None:
    backbone = build_backbone(BackboneOptions(name="vit_demo", image_size=64), seed=0)
    objective = MaPeT(backbone, 32, MaPeTOptions(cutting_point=5), seed=0)
    learner = TokenPrediction(objective, pretraining_square(64), jitter=0.4)
    optimizer = build_optimizer(learner.parameter_groups(0.05), TrainingOptions())
    names = {id(parameter): name.removeprefix("objective.") for name, parameter in learner.named_parameters()}
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert set(groups) == {0.0, 0.05}
    assert {"backbone.pos_embed", "backbone.cls_token", "head.bias", "backbone.blocks.0.ls1.gamma"} <= groups[0.0]
    assert {"mask_token", "head.weight", "backbone.patch_embed.proj.weight"} <= groups[0.05]
    assert not {name for name in groups[0.05] if name.endswith("bias") or "norm" in name or "gamma" in name}
    assert len(groups[0.0] | groups[0.05]) == len(names)


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_jitter_is_torchvisions_with_some_factors_in_some_order() -> None:
    """Every image equals one of the six orders of torchvision's own operations, with factors that fit it."""
    pictures, seeds = images(), torch.arange(6)
    jittered = colour_jitter(pictures, seeds, 0.4)
    operations = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    from models.masking import uniforms

    draws = uniforms(seeds, 4, 2)
    for image, result, (*factors, order) in zip(pictures, jittered, draws.tolist(), strict=True):
        expected = image
        for which in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))[int(order * 6)]:
            expected = operations[which](expected, 0.6 + 0.8 * factors[which])
        assert torch.allclose(result, expected, atol=2e-3)  # torchvision rounds the weights of gray
    assert len({int(6 * draw) for draw in draws[:, 3]}) > 1


def test_jitter_depends_on_the_image_and_its_seed_alone() -> None:
    pictures, seeds = images(), torch.arange(6)
    whole = colour_jitter(pictures, seeds, 0.4)
    pieces = [colour_jitter(pictures[i : i + 2], seeds[i : i + 2], 0.4) for i in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(pieces))
    assert not torch.allclose(whole, colour_jitter(pictures, seeds + 6, 0.4), atol=1e-2)


def test_jitter_moves_no_pixel() -> None:
    """A picture of two flat halves keeps its border where it was."""
    halves = torch.cat([torch.full((4, 3, 8, 4), 0.2), torch.full((4, 3, 8, 4), 0.7)], dim=3)
    jittered = colour_jitter(halves, torch.arange(4), 0.4)
    assert torch.allclose(jittered[..., :4], jittered[..., :1].expand(-1, -1, -1, 4))
    assert torch.allclose(jittered[..., 4:], jittered[..., 4:5].expand(-1, -1, -1, 4))
    assert (jittered[..., 4] > jittered[..., 3]).all()


def test_jitter_of_no_strength_changes_nothing() -> None:
    assert torch.equal(colour_jitter(images(), torch.arange(6), 0.0), images())


def test_validation_is_without_jitter_and_stochastic_depth() -> None:
    backbone = build_backbone(BackboneOptions(name="vit_demo", image_size=64, drop_path_rate=0.5), seed=0)
    learner = TokenPrediction(
        MaPeT(backbone, 32, MaPeTOptions(cutting_point=5), seed=0), pretraining_square(64), jitter=0.4
    )
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens, seeds = torch.zeros(4, 16, dtype=torch.int32), torch.arange(4)
    mean, std = learner.mean, learner.std
    quiet = learner.eval()(pixels, tokens, seeds).loss
    assert torch.equal(quiet, learner.objective((pixels.float() / 255 - mean) / std, tokens, seeds).loss)
    assert not torch.equal(quiet, learner.train()(pixels, tokens, seeds).loss)


def test_batch_norms_are_shared_by_processes_on_gpus_and_keep_their_weights() -> None:
    """Converting needs no GPU; running does. On CPUs torch has no such BatchNorm, so there they stay as they are."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    weights, names = [*network.parameters()], [*network.state_dict()]
    for processes in (Processes(torch.device("cuda")), Processes(torch.device("cpu"), size=2)):
        assert not any(isinstance(part, nn.SyncBatchNorm) for part in processes.with_shared_norms(network).modules())

    shared = Processes(torch.device("cuda"), size=2).with_shared_norms(network)

    assert isinstance(shared[1][0], nn.SyncBatchNorm)
    assert [*shared.state_dict()] == names
    assert all(ours is theirs for ours, theirs in zip(shared.parameters(), weights, strict=True))


def test_a_history_forgets_what_came_after_a_checkpoint_and_half_a_line(tmp_path: Path) -> None:
    history = History(tmp_path)
    for step in (1, 2, 3):
        history.append(step, step / 10, {"loss": 1.0 / step})
    with (tmp_path / HISTORY).open("a") as file:
        file.write('{"step": 4, "los')
    assert [entry["step"] for entry in history.rewind(2)] == [1, 2]
    assert read_history(tmp_path) == [
        {"step": 1, "epoch": 0.1, "loss": 1.0},
        {"step": 2, "epoch": 0.2, "loss": 0.5},
    ]


def test_a_record_holds_the_last_point_of_every_curve_that_is_a_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    history = History(tmp_path)
    history.append(1, 0.5, {"loss": 3.0, "val_loss": 4.0})
    history.append(2, 1.0, {"loss": 2.0})
    history.append(2, 1.0, {"val_loss": math.nan, "val_accuracy": 0.5})
    assert last_of_curves(tmp_path, ("loss", "val_loss", "val_accuracy", "never")) == {
        "steps": 2,
        "loss": 2.0,
        "val_accuracy": 0.5,
    }
    assert "val_loss at the end of the training is not finite" in caplog.text


def test_running_means_survive_a_checkpoint_and_leave_out_what_is_not_finite() -> None:
    means = RunningMeans()
    means.add({"loss": 2.0, "gradient_norm": math.inf})
    restored = RunningMeans(**json.loads(json.dumps(vars(means))))
    restored.add({"loss": 4.0, "gradient_norm": 1.0})
    assert restored.take() == {"loss": 3.0, "gradient_norm": 1.0}
    assert restored.take() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_step_that_fails_because_its_workers_got_the_signal_too_is_an_interrupt(number: signal.Signals) -> None:
    """SLURM signals the whole group: the loader's RuntimeError is not why the run ended."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def step() -> None:
        with HeldInterrupts() as interrupts:
            signal.raise_signal(number)
            assert interrupts.received == number
            raise RuntimeError("DataLoader worker is killed by signal: Terminated.")

    before = signal.signal(number, interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            step()
    finally:
        signal.signal(number, before)


def test_a_failure_without_a_signal_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="something else"), HeldInterrupts():
        raise RuntimeError("something else")


def test_a_small_network_gets_one_thread_and_a_large_one_what_there_is() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(torch.nn.Linear(10, 10)):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with threads_for(torch.nn.Linear(1000, 1000)):
            assert torch.get_num_threads() == 2
        codebook = torch.nn.Linear(10, 10)
        codebook.register_buffer("centroids", torch.zeros(1000, 1000))
        with threads_for(codebook):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_small_network_judges_in_one_thread() -> None:
    before, threads = torch.get_num_threads(), []
    torch.set_num_threads(2)
    batch = Batch(np.arange(3), (torch.zeros(3, 10),))

    def judge(batch: Batch) -> torch.Tensor:
        threads.append(torch.get_num_threads())
        return batch.inputs[0]

    try:
        judged_together(torch.nn.Linear(10, 10), [batch], judge, Processes(torch.device("cpu")), total=3)
        judged_together(torch.nn.Linear(1000, 1000), [batch], judge, Processes(torch.device("cpu")), total=3)
    finally:
        torch.set_num_threads(before)
    assert threads == [1, 2]


def test_a_cpu_says_nothing_of_its_energy() -> None:
    cpu = torch.device("cpu")
    assert EnergyMeter(cpu).watt_hours() is None
    assert Processes(cpu).notes(None) == {"processes": 1, "device": "CPU"}
    assert Processes(cpu).notes(2.345) == {"processes": 1, "device": "CPU", "watt_hours": 2.3}


def test_a_worker_says_nothing_of_a_reader_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # put back afterwards
    silence_broken_pipes()
    for error in (EOFError(), ConnectionResetError(), BrokenPipeError()):
        sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err == ""
    sys.excepthook(ValueError, ValueError("something else"), None)
    assert "ValueError: something else" in capsys.readouterr().err
