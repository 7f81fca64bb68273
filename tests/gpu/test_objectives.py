"""What is learned from: every objective's loss and gradients on the device, against float32 on the CPU."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.clip.encoder import load_clip
from models.clip.options import ClipOptions
from models.objectives import OBJECTIVES
from tests.models.small_objectives import batch, build
from tests.models.vqkd_learners import SEEDS, images, learner_of
from tests.tiny_clip import write_tiny_clip

EVERY = pytest.mark.parametrize("name", list(OBJECTIVES))


def learned(
    module: nn.Module, *inputs: Tensor, device: str, precision: str = "fp32"
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss, and the gradients by name, on the CPU."""
    module.to(device).zero_grad()
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
        loss = module(*(tensor.to(device) for tensor in inputs)).loss
    loss.backward()
    gradients = {name: p.grad.cpu().float() for name, p in module.named_parameters() if p.grad is not None}
    return loss.item(), gradients


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], *, part: float) -> None:
    """Compare to a part of each tensor's largest number."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (found[name] - gradient).abs().max() / gradient.abs().max().clamp_min(1e-9)
        assert error < part, f"{name}: {error:.1e}"


def direction(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


@EVERY
def test_what_is_hidden_is_what_the_cpu_hides(name: str, device: str) -> None:
    *_, seeds = batch(8)
    assert torch.equal(build(name).to(device).order(seeds.to(device)).cpu(), build(name).order(seeds))


@EVERY
@pytest.mark.usefixtures("_float32")
def test_loss_and_gradients_in_float32_are_those_of_the_cpu(name: str, device: str) -> None:
    expected, wanted = learned(build(name), *batch(), device="cpu")
    loss, gradients = learned(build(name), *batch(), device=device)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert_same_gradients(gradients, wanted, part=1e-3)


@EVERY
def test_bfloat16_stays_near_float32(name: str, device: str) -> None:
    expected, wanted = learned(build(name), *batch(), device="cpu")
    loss, gradients = learned(build(name), *batch(), device=device, precision="bf16")
    assert loss == pytest.approx(expected, abs=0.03)
    assert F.cosine_similarity(direction(gradients), direction(wanted), dim=0) > 0.98


@EVERY
@pytest.mark.usefixtures("_float32")
@pytest.mark.parametrize(
    "save_memory", [lambda o: o.backbone.set_grad_checkpointing(), lambda o: vars(o).update(head_rows=7)]
)
def test_saving_memory_changes_no_gradient(name: str, save_memory: Callable[[nn.Module], None], device: str) -> None:
    plain, frugal = build(name), build(name)
    save_memory(frugal)
    expected, wanted = learned(plain, *batch(), device=device)
    loss, gradients = learned(frugal, *batch(), device=device)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert_same_gradients(gradients, wanted, part=1e-3)


@EVERY
@pytest.mark.usefixtures("_float32")
def test_compiled_it_learns_the_same(name: str, device: str) -> None:
    expected, wanted = learned(build(name), *batch(), device=device)
    torch.compiler.reset()
    objective = build(name).to(device)
    # For a CPU, where it would take minutes of a C++ compiler, without the last step.
    compiled = torch.compile(objective, backend="inductor" if device.startswith("cuda") else "aot_eager")
    output = compiled(*(tensor.to(device) for tensor in batch()))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected, abs=1e-4)
    found = {name: p.grad.cpu() for name, p in objective.named_parameters() if p.grad is not None}
    assert_same_gradients(found, wanted, part=1e-2)


@pytest.mark.usefixtures("_float32")
def test_a_vqkd_learns_on_the_device_what_it_learns_on_the_cpu(
    device: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    options = ClipOptions(
        model=write_tiny_clip(tmp_path_factory.mktemp("clip")), dilate_last_stage=True, precision="fp32"
    )
    found = {}
    for where in ("cpu", device):
        learner = learner_of(load_clip(options, device=where))
        found[where] = learned(learner, images(), SEEDS, device=where)
    assert found[device][0] == pytest.approx(found["cpu"][0], abs=1e-4)
    assert_same_gradients(found[device][1], found["cpu"][1], part=1e-2)
