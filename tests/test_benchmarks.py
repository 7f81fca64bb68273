"""The benchmarks run through at tiny sizes, and write records of one format. How fast they are is nobody's test."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import (
    attention,
    decode,
    encoder_share,
    feed,
    index,
    kmeans,
    measure,
    memory,
    startup,
    token_store,
    training_step,
    vqkd,
)
from benchmarks.measure import Measurement, Seconds
from benchmarks.official_mapet import official_weights
from benchmarks.pictures import write_small_images
from benchmarks.training_step import ObjectiveStep, Setting
from models.clip.options import ClipOptions
from models.masking import corruption_seeds, permutations
from models.vit.options import BackboneOptions
from models.vit.windows import SlidingWindow
from storage.token_store import TokenStore
from tests.hold_memory import hold
from tests.tiny_clip import write_tiny_clip

FIELDS = ["name", "value", "unit", "against", "ratio", "hardware", "commit"]


def test_a_result_is_one_json_line_with_these_fields_in_this_order(tmp_path: Path) -> None:
    measured = [Measurement("a.b", 1.23456, "s", "c: 2 s", 0.61728), Measurement("a.d", 3.0, "MB")]
    path = measure.write_results("a", measured, hardware="a machine", commit="0123", folder=tmp_path)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert path.name == "a.jsonl"
    assert list(first) == FIELDS
    assert list(second) == FIELDS
    assert first["value"] == 1.235
    assert (second["against"], second["ratio"]) == ("", None)


def test_a_second_run_replaces_the_results_of_the_first(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        measured = [Measurement("a.b", value, "s")]
        path = measure.write_results("a", measured, hardware="", commit="", folder=tmp_path)
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [2.0]
    assert list(tmp_path.iterdir()) == [path]


def test_the_published_results_have_the_record_format() -> None:
    paths = sorted(measure.RESULTS.glob("*.jsonl"))
    assert {path.stem for path in paths} <= {*command.NAMES, "soak"}  # `make soak` writes its counts there too
    for path in paths:
        for line in path.read_text().splitlines():
            record = json.loads(line)
            assert list(record) == FIELDS
            assert record["name"].startswith(f"{path.stem}.")


def test_interleaved_work_runs_once_per_round_and_begins_with_another_each_time() -> None:
    calls: list[str] = []
    works = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = measure.interleaved(works, rounds=2)
    assert calls == ["a", "b", "b", "a"]
    assert {name: len(found) for name, found in seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_the_median_of_the_rounds_not_the_ratio_of_medians() -> None:
    assert measure.median_ratio([1.0, 10.0, 3.0], [1.0, 2.0, 30.0]) == 1.0


def test_the_memory_that_a_function_holds_is_seen_from_outside() -> None:
    small = measure.in_own_process(hold, 1 << 20)
    large = measure.in_own_process(hold, 1 << 28)
    assert large.result == 1 << 28
    grown = (1 << 28) - (1 << 20)
    for peak in ("peak_anonymous", "peak_family", "peak_resident"):
        assert getattr(large, peak) - getattr(small, peak) == pytest.approx(grown, rel=0.1)


def test_a_measured_process_that_dies_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"_exit: its process ended with exit code 3"):
        measure.in_own_process(os._exit, 3)


def test_the_hardware_is_named_and_the_commit_is_one() -> None:
    assert " cores, " in measure.hardware()
    assert len(measure.commit().removesuffix("+changes")) == 12 or measure.commit() == "unknown"


def test_an_unknown_benchmark_is_refused_with_the_known_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["speed"]) == 2
    assert "memory, index, encoder_share" in capsys.readouterr().err


def test_starting_is_compared_with_importing_torch() -> None:
    measured = startup.run(rounds=1, commands={"nothing": ("-c", "")}, plan=("-c", "print('  index_images run')"))
    assert [item.name for item in measured] == ["startup.nothing"], "a plan that is not cached is left out"
    assert measured[0].ratio is not None
    assert measured[0].ratio < 0.5


def test_memory_is_compared_between_many_and_few_images() -> None:
    small, large = (measure.MeasuredProcess(None, peak, 2 * peak, 3 * peak) for peak in (100_000_000, 110_000_000))
    anonymous, family, resident, growth = memory.compare(small, large, few=1_000, many=2_000)
    assert (anonymous.value, anonymous.ratio) == (110, pytest.approx(1.1))
    assert anonymous.against == "1,000 images: 100 MB"
    assert (family.value, resident.value) == (220, 330)
    assert growth.value == 10_000


def test_indexing_is_measured_on_hard_links_and_against_a_bare_walk(tmp_path: Path) -> None:
    index.write_links(tmp_path / "images", count=1_003)
    index.write_links(tmp_path / "few", count=2)
    assert index.list_files(tmp_path / "few") > 0
    assert (tmp_path / "images/train/n01440764/n01440764_10999.JPEG").stat().st_nlink == 1_000
    measured = index.index_folder(str(tmp_path), 0)
    assert measured.before > 0
    assert measured.index.wall > measured.walk.wall > 0


def test_memory_measures_a_build_up_to_the_tokens(tmp_path: Path) -> None:
    write_small_images(tmp_path / "images", count=100)
    memory.image_passes(str(tmp_path))
    (store,) = (tmp_path / "data" / "tokenize_images").glob("*/tokens.zarr")
    assert TokenStore(store.parent).load().shape == (100, 4)


def test_encoder_share_is_a_share(tmp_path: Path) -> None:
    clip = ClipOptions(model=write_tiny_clip(tmp_path / "clip"))
    measured = {item.name: item for item in encoder_share.run(images=4, rounds=1, clip=clip, vocabulary=8)}
    assert 0 < measured["encoder_share.extract.not_encoder"].value < 1
    assert 0 < measured["encoder_share.tokenize.assignment"].value < 1
    assert "encoder_share.extract.assignment" not in measured


def test_vqkd_compares_a_whole_pass_with_the_encoder() -> None:
    sizes = {"width": 64, "depth": 1, "patch": 8, "patches": 16, "vocabulary": 16, "code_width": 4}
    whole, cpu = vqkd.run(images=4, rounds=1, sizes=sizes, image_size=32)
    alone = float(whole.against.split()[-2])
    assert whole.ratio == pytest.approx(whole.value / alone, rel=0.01)
    assert cpu.value > 0


def test_token_store_compares_with_numpy() -> None:
    measured = {item.name: item for item in token_store.run(images=300, patches=4, rounds=1)}
    assert measured["token_store.load"].against.startswith("np.load: ")
    assert measured["token_store.size"].ratio == pytest.approx(
        measured["token_store.size"].value * 1e6 / (300 * 4 * 2 + 128)
    )


def test_zipf_tokens_fall_in_frequency() -> None:
    counts = np.bincount(token_store.zipf_tokens(2_000, 196).ravel(), minlength=token_store.VOCABULARY)
    assert counts[0] > counts[100] > counts[2_000] > 0


def test_kmeans_fits_the_same_rows_with_both() -> None:
    found = kmeans.run(rows=600, width=8, vocabulary=4, iterations=2, rounds=1, patches=((600, 4, 4),))
    measured = {item.name: item for item in found}
    assert measured["kmeans.inertia"].ratio == pytest.approx(1, abs=0.3)
    assert measured["kmeans.growing4.inertia"].ratio == pytest.approx(1, abs=0.3)
    assert 2 < measured["kmeans.growing4.visits"].value < 20


def test_inertia_is_the_sum_of_squared_distances_to_the_nearest(tmp_path: Path) -> None:
    problem = kmeans.Problem(tmp_path / "rows.npy", vocabulary=2, iterations=1, seed=0)
    np.save(problem.rows, np.array([[0, 0], [3, 4], [10, 0]], np.float16))
    np.save(problem.centroids, np.array([[0, 0], [10, 1]], np.float32))
    assert kmeans.inertia(problem) == 0 + 25 + 1


def test_decode_measures_both_presets_at_every_size() -> None:
    measured = decode.run(images=2, sizes=(32,), rounds=1)
    assert [item.name for item in measured] == ["decode.exact.32", "decode.fast.32"]


def test_feed_compares_kept_squares_with_decoding() -> None:
    sizes = {"photographs": 2, "squares": 4, "batch": 2, "image_size": 32, "few": 2, "many": 4}
    measured = {item.name: item for item in feed.run(rounds=1, demo=False, **sizes)}
    assert list(measured) == ["feed.exact", "feed.fast", "feed.stored", "feed.stored.memory"]
    assert measured["feed.stored"].value > 0


TINY_STEP = Setting(BackboneOptions(name="vit_demo", image_size=40, patch_size=4), batch=2, vocabulary=8)


def test_training_step_compares_objectives_with_mim_of_as_many_and_of_75_patches() -> None:
    measured = training_step.times(TINY_STEP, None, rounds=1)
    objectives = ("mapet", "pim", "beit", "cae")
    names = [f"{TINY_STEP.name}.{name}.cpu_to_{mim}" for mim in ("mim51", "mim75") for name in objectives]
    assert [item.name for item in measured] == [f"{TINY_STEP.name}.mapet_blocks.cpu_to_mapet", *names]


def test_attention_is_compared_with_torchs_own_call() -> None:
    measured = {item.name: item for item in attention.run(images=1, rounds=1, window=SlidingWindow(4, 3, width=4))}
    assert {"attention.fp32.mapet.blocks", "attention.fp32.mapet_last.blocks"} <= measured.keys()
    assert all(item.ratio is not None and item.ratio > 0 for item in measured.values())


def test_a_training_step_changes_the_weights_and_draws_new_masks() -> None:
    step = ObjectiveStep(TINY_STEP, "mapet")
    before = step.objective.head.weight.detach().clone()
    first, second = step.loss(), step.loss()
    assert first != second
    step()
    assert not torch.equal(step.objective.head.weight, before)


def test_bytes_kept_for_backward_count_every_storage_once() -> None:
    x = torch.ones(10, requires_grad=True)

    def forward() -> torch.Tensor:
        y = x.exp()  # keeps its result, of which the product keeps both halves
        return y[:5] * y[5:]

    assert training_step.bytes_kept_for_backward(forward) == 10 * 4


def test_an_image_keeps_bytes_for_backward_and_fewer_in_half_precision() -> None:
    half = Setting(TINY_STEP.backbone, "bf16", vocabulary=8)
    (single,), (double,) = (training_step.saved_bytes(setting, None) for setting in (half, TINY_STEP))
    assert 0 < single.value < double.value
    assert single.ratio is None


def test_training_step_without_the_official_code_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert training_step.official_code(None) is None
    assert "OFFICIAL_MAPET" in capsys.readouterr().out


def test_a_folder_without_the_official_code_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mapet"):
        training_step.official_code(str(tmp_path))


def test_the_official_names_hold_all_of_our_weights() -> None:
    objective = ObjectiveStep(TINY_STEP, "mapet").objective
    weights = official_weights(objective)
    ours = objective.backbone.blocks[0].attn.qkv.weight
    assert torch.equal(torch.cat([weights["blocks.0.attn.q.weight"], weights["blocks.0.attn.kv.weight"]]), ours)
    assert sum(value.numel() for value in weights.values()) == sum(p.numel() for p in objective.parameters())


@pytest.mark.skipif(not os.environ.get("OFFICIAL_MAPET"), reason="OFFICIAL_MAPET names no checkout")
def test_the_official_step_computes_our_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(BackboneOptions(name="vit_tiny", drop_path_rate=0), batch=2)
    ours, code = ObjectiveStep(setting, "mapet"), training_step.official_code(os.environ["OFFICIAL_MAPET"])
    with torch.no_grad():
        ours.objective.head.weight.mul_(20)  # else every order has the loss log(8192)
        ours.objective.backbone.pos_embed.mul_(10)
    official = training_step.official_step(code, ours)
    orders = iter(permutations(corruption_seeds(0, 1, torch.arange(2)), 196))
    monkeypatch.setattr("torch.randperm", lambda count: next(orders))
    same, other = ours.loss().item(), ours.loss().item()
    assert official.loss() == pytest.approx(same, abs=1e-4)
    assert abs(other - same) > 1e-2


def test_the_arithmetic_of_a_step_is_three_forward_passes() -> None:
    """Rows, attention and head of MIM by hand; the patches are a convolution."""
    step = ObjectiveStep(TINY_STEP, "mim")
    width, depth, rows, read = 64, 4, 101, 75
    last = 2 * width * width * (read + 2 * rows + read + 8 * read) + 4 * width * read * rows
    blocks = (depth - 1) * (2 * width * width * 12 * rows + 4 * width * rows * rows) + last
    assert step.flops() == 3 * 2 * (blocks + 2 * 100 * 48 * width + 2 * read * width * 8)


def test_seconds_of_work_are_positive() -> None:
    seconds = measure.timed(lambda: sum(range(100_000)))
    assert isinstance(seconds, Seconds)
    assert seconds.wall > 0
