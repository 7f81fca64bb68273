"""Attention in sliding windows against the masked call, and the gradients of products against torch's."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.masking import two_stream_attention_mask
from models.objectives import OBJECTIVES
from models.objectives.permuted import PermutedObjective
from models.vit import attention
from models.vit.attention import attend, choose_way, chosen_way
from models.vit.windows import BLOCK, SlidingWindow, attend_by_flex, attend_in_windows
from pipeline.engine.devices import attend_with
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from tests.models.small_objectives import VOCABULARY, batch, build, tiny_backbone
from tests.models.test_golden import GOLDEN
from tests.reference.golden import check_file

TWO_STREAM = pytest.mark.parametrize("name", ["pim", "mapet"])
SIZES = pytest.mark.parametrize(
    "window",
    [
        SlidingWindow(101, 51, width=101),  # MaPeT's, of blocks of 49 and 2
        SlidingWindow(50, 147, width=197),  # PIM's
        SlidingWindow(17, 12, width=17),  # all steps in one block
        SlidingWindow(10, BLOCK + 1, width=20),  # wider than the first rows, narrower than all keys
        SlidingWindow(1, 100, width=101),  # nothing is shown
        SlidingWindow(101, 1, width=101),  # one step
    ],
    ids=str,
)


@pytest.fixture(autouse=True)
def in_blocks() -> Iterator[None]:
    """Attend in blocks, in each test."""
    choose_way("blocks")
    yield
    choose_way("auto")


def results(objective: PermutedObjective, dtype: torch.dtype) -> list[Tensor]:
    """Return the loss and its gradient by each parameter."""
    images, tokens, seeds = batch()
    objective.to(dtype).zero_grad()
    loss = objective(images.to(dtype), tokens, seeds).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in objective.parameters())]


def with_gradients(found: Tensor, *inputs: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, found.shape[-1]).to(found)
    return [found.detach(), *torch.autograd.grad((found * weights).sum(), inputs)]


def drawn(window: SlidingWindow, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    counts = window.rows, window.keys, window.keys
    return [torch.randn(2, 2, n, 8, generator=generator).to(dtype).requires_grad_() for n in counts]


def test_on_a_cpu_the_settings_choose_between_masks_and_blocks() -> None:
    chosen = {}
    for words in ("windows", "blocks", "flex", "math", "auto"):
        Settings(device="cpu", attention=words).torch_device()
        chosen[words] = chosen_way()
    assert chosen == {"windows": None, "blocks": "blocks", "flex": None, "math": None, "auto": None}


def test_flex_is_refused_where_nothing_compiles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(PipelineError, match=r"settings\.attention=flex is compiled by Triton.*set it to auto"):
        attend_with("flex", "cuda")
    assert chosen_way() == "blocks", "what was chosen stays"


@TWO_STREAM
@pytest.mark.parametrize("cutting_point", [1, 2, 50, 100])
def test_the_window_of_an_objective_is_its_mask_in_another_order(name: str, cutting_point: int) -> None:
    known = OBJECTIVES[name]
    options = known.options_class(cutting_point=cutting_point)
    objective = known.load()(tiny_backbone(), VOCABULARY, options, seed=0)
    order = objective.in_windows(torch.arange(float(objective.window.rows))[None, :, None]).flatten().long()
    assert torch.equal(order[: objective.keys].sort().values, torch.arange(objective.keys))
    assert torch.equal(order[objective.keys :], torch.arange(objective.keys, len(order)))
    assert torch.equal(objective.window.mask(), objective.attention_mask[order][:, order[: objective.keys]])


@SIZES
def test_blocks_attend_as_the_mask_says(window: SlidingWindow) -> None:
    queries, keys, values = drawn(window)
    for rows in (window.rows, window.steps):  # all, and of the last block the queries alone
        asking = queries[:, :, -rows:]
        masked = attend(asking, keys, values, window.mask()[-rows:])
        ours = attend_in_windows(asking, keys, values, window)
        for one, other in zip(*(with_gradients(x, queries, keys, values) for x in (ours, masked)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@SIZES
def test_flex_attends_as_the_mask_says(window: SlidingWindow) -> None:
    """Uncompiled, and without the gradients, which it has on a GPU only."""
    queries, keys, values = (each.detach() for each in drawn(window))
    with torch.compiler.set_stance("force_eager"):
        for rows in (window.rows, window.steps):
            masked = attend(queries[:, :, -rows:], keys, values, window.mask()[-rows:])
            found = attend_by_flex(queries[:, :, -rows:], keys, values, window)
            torch.testing.assert_close(found, masked, rtol=1e-12, atol=1e-12)


@TWO_STREAM
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_the_mask(
    name: str, dtype: torch.dtype, tolerance: float, checkpointing: bool
) -> None:
    objective = build(name)
    objective.backbone.set_grad_checkpointing(checkpointing)
    ours = results(objective, dtype)
    choose_way("auto")
    for one, other in zip(ours, results(objective, dtype), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("pim", "mapet")])
def test_what_has_no_window_is_computed_as_ever(name: str) -> None:
    objective = build(name)
    ours = objective(*batch()).loss
    choose_way("auto")
    assert torch.equal(ours, objective(*batch()).loss)


def test_the_official_numbers_are_matched_in_windows_too() -> None:
    assert not [found for found in check_file(GOLDEN)[0] if not found.passes]


@TWO_STREAM
def test_in_windows_a_prediction_knows_no_patch_that_is_to_come(name: str) -> None:
    objective = build(name).eval()
    images, _, seeds = batch(1)
    order = objective.order(seeds)
    for step in (0, BLOCK, objective.predicted - 1):
        logits = objective.predict(images.requires_grad_(), order)[0, step]
        (gradient,) = torch.autograd.grad((logits * torch.linspace(-1, 1, VOCABULARY)).sum(), images)
        patches = gradient[0].abs().unflatten(2, (10, 4)).unflatten(1, (10, 4)).amax((0, 2, 4)).flatten()
        influence = patches[order[0]]
        assert (influence[: objective.context + step] > 0).all()
        assert (influence[objective.context + step :] == 0).all()


@TWO_STREAM
def test_compiled_windows_learn_the_same(name: str) -> None:
    torch.compiler.reset()
    objective = build(name)
    expected = results(objective, torch.float32)
    compiled = torch.compile(objective, backend="aot_eager")
    objective.zero_grad()
    loss = compiled(*batch()).loss
    loss.backward()
    found = [loss, *(parameter.grad for parameter in objective.parameters())]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("masked", [True, False])
def test_products_give_the_gradients_of_bfloat16_and_the_results_bit_for_bit(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_MULTIPLIES_BFLOAT16", True)
    monkeypatch.setattr(attention, "_SCORES_AT_ONCE", 1)  # image by image
    mask = two_stream_attention_mask(40, 9, masks=True) if masked else None
    rows, keys = mask.shape if mask is not None else (41, 41)
    inputs = drawn(SlidingWindow(2 * keys - rows, rows - keys, width=keys), torch.bfloat16)
    ours = with_gradients(attend(*inputs, mask), *inputs)
    plain = with_gradients(F.scaled_dot_product_attention(*inputs, attn_mask=mask), *inputs)
    assert torch.equal(ours[0], plain[0])
    exact = [each.detach().double().requires_grad_() for each in inputs]
    expected = with_gradients(F.scaled_dot_product_attention(*exact, attn_mask=mask), *exact)
    for one, wanted in zip(ours[1:], expected[1:], strict=True):
        assert (one - wanted).norm() < 0.01 * wanted.norm()
