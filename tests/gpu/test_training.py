"""A whole pre-training on the device: against the CPU's, killed and resumed, in pieces, compiled."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.training.history import read_history
from storage.artifact import Artifact
from tests.stages import TokenizedImages
from tests.trainings import begin_pretraining, small_pretraining, steps_on_disk

# Kernels of a GPU add in any order: what is the same twice on a CPU is nearly so there.
ALIKE = 1e-3
LONG = ("training.epochs=10", "training.validation_epochs=10")


def curve(trained: Artifact, name: str = "loss") -> list[float]:
    return [entry[name] for entry in read_history(trained.path) if name in entry]


@pytest.fixture(scope="module")
def on_device(device: str, tokenized: TokenizedImages, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_pretraining(tokenized, tmp_path_factory.mktemp("plain"), device=device).artifact


@pytest.mark.parametrize("objective", ["mapet", "pim", "mim", "beit", "cae"])
def test_it_learns_as_on_the_cpu(objective: str, device: str, tokenized: TokenizedImages, tmp_path: Path) -> None:
    chosen = f"pretrain.objective={objective}"
    found = small_pretraining(tokenized, tmp_path / "device", chosen, device=device).artifact
    expected = small_pretraining(tokenized, tmp_path / "cpu", chosen).artifact
    assert found.fingerprint == expected.fingerprint
    for name in ("loss", "val_token_loss"):
        assert curve(found, name) == pytest.approx(curve(expected, name), rel=0.01), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_it_learns_nearly_so(
    precision: str, device: str, tokenized: TokenizedImages, on_device: Artifact, tmp_path: Path
) -> None:
    if precision == "fp16" and not device.startswith("cuda"):
        pytest.skip("float16 is for GPUs")
    found = small_pretraining(tokenized, tmp_path, f"training.precision={precision}", device=device).artifact
    assert curve(found) == pytest.approx(curve(on_device), rel=0.03)


@pytest.mark.parametrize(
    "setting",
    [{"micro_batch_size": 3}, {"gradient_checkpointing": True}, {"head_rows": 7}, {"workers": 2}],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_of_the_machine_change_no_curve(
    setting: dict[str, Any], device: str, tokenized: TokenizedImages, on_device: Artifact, tmp_path: Path
) -> None:
    found = small_pretraining(tokenized, tmp_path, device=device, **setting).artifact
    assert curve(found) == pytest.approx(curve(on_device), rel=ALIKE)


def test_compiled_it_learns_the_same(
    device: str, tokenized: TokenizedImages, on_device: Artifact, tmp_path: Path
) -> None:
    if not device.startswith("cuda"):
        pytest.skip("compiling for a CPU takes minutes")
    found = small_pretraining(tokenized, tmp_path, device=device, compile=True).artifact
    assert curve(found) == pytest.approx(curve(on_device), rel=0.01)


def test_a_run_that_is_killed_twice_and_goes_on_learns_what_one_does_that_is_not(
    device: str, tokenized: TokenizedImages, tmp_path: Path
) -> None:
    undisturbed = small_pretraining(tokenized, tmp_path / "undisturbed", *LONG, device=device).artifact
    root = tmp_path / "root"
    for step in (6, 30):
        process = begin_pretraining(tokenized, root, tmp_path, *LONG, device=device, checkpoint_steps=4)
        process.wait_until(lambda step=step: steps_on_disk(root) >= step)  # type: ignore[misc]
        process.kill()
    resumed = small_pretraining(tokenized, root, *LONG, device=device).artifact
    assert len(curve(resumed)) == len(curve(undisturbed))
    # Each step carries the rounding of those before it on.
    assert curve(resumed) == pytest.approx(curve(undisturbed), rel=0.02 if device.startswith("cuda") else 0)
