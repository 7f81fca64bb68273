"""The context autoencoder: what its encoder may see, what carries gradients, and what is reported."""

import math

import pytest
import torch
from torch import Tensor

from models.errors import ModelError
from models.objectives.base import ObjectiveOutput
from models.objectives.cae import CAE
from models.objectives.options import CAEOptions
from models.vit.backbones import build_backbone
from models.vit.options import BackboneOptions

VOCABULARY = 50
PATCH = 8


def cae(*, masked: int = 8, drop_path_rate: float = 0.0, **choices: float) -> CAE:
    shape = BackboneOptions(name="vit_demo", image_size=4 * PATCH, patch_size=PATCH, drop_path_rate=drop_path_rate)
    options = CAEOptions(masked=masked, regressor_depth=2, decoder_depth=2, **choices)
    return CAE(build_backbone(shape, seed=1), VOCABULARY, options, seed=2)


def batch(count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(5)
    images = torch.randn(count, 3, 4 * PATCH, 4 * PATCH, generator=random)
    return images, torch.randint(VOCABULARY, (count, 16), generator=random), torch.arange(count) + 11


def pixels_of(targets: Tensor) -> Tensor:
    """Return 1 where a pixel belongs to one of the patches `targets` [B, P]."""
    patches = torch.zeros(len(targets), 16).scatter_(1, targets, 1.0).view(-1, 1, 4, 4)
    return patches.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)


def total_loss(output: ObjectiveOutput, weight: float) -> Tensor:
    return output.metrics["token_loss"] + weight * output.metrics["alignment_loss"]


def test_predictions_do_not_depend_on_masked_pixels() -> None:
    model, (images, _, seeds) = cae(), batch()
    order = model.order(seeds)
    inside = pixels_of(order[:, model.context :])

    assert torch.equal(model.predict(images + 3 * inside, order), model.predict(images, order))
    assert not torch.allclose(model.predict(images + 0.1 * (1 - inside), order), model.predict(images, order))


def test_masked_pixels_get_no_gradient_at_all_since_the_alignment_target_passes_none() -> None:
    model, (images, tokens, seeds) = cae(), batch()
    inside = pixels_of(model.order(seeds)[:, model.context :]).expand_as(images).bool()
    images.requires_grad_()

    model(images, tokens, seeds).loss.backward()

    assert images.grad is not None
    assert (images.grad[inside] == 0).all()
    assert (images.grad[~inside] != 0).all()


def test_the_alignment_target_is_the_encoder_s_own_view_of_the_masked_patches() -> None:
    model, (images, _, seeds) = cae(), batch()
    order = model.order(seeds)
    rows = model.rows(images, order)
    target = model.alignment_targets(rows, seeds)

    hidden = torch.cat([rows[:, :1], rows[:, 1 + model.context :]], dim=1)
    expected = model.backbone.norm(model.backbone.blocks(hidden))[:, 1:]

    assert not target.requires_grad
    torch.testing.assert_close(target, expected.detach(), atol=1e-5, rtol=1e-5)


def test_alignment_alone_trains_encoder_and_regressor_but_neither_decoder_nor_head() -> None:
    model, (images, _, seeds) = cae(), batch()
    order = model.order(seeds)
    rows = model.rows(images, order)
    latent = model.guess(rows[:, : 1 + model.context], order, seeds).latent

    (latent - model.alignment_targets(rows, seeds)).square().mean().backward()

    untouched = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is None and "neck" in name}
    assert untouched == {"decoder", "decoder_norm"}
    assert model.head.weight.grad is None
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_loss_is_the_reported_token_loss_plus_the_weighted_alignment(weight: float) -> None:
    output = cae(alignment_weight=weight)(*batch())

    assert set(output.metrics) == {"token_loss", "alignment_loss", "token_accuracy"}
    assert not any(metric.requires_grad for metric in output.metrics.values())
    torch.testing.assert_close(output.loss.detach(), total_loss(output, weight))


def test_at_the_start_tokens_are_guessed_and_features_are_as_far_apart_as_strangers() -> None:
    model = cae()
    output = model(*batch(16))

    # Half the variance of the logits more than for equal ones: D rows of variance one times 2 / (D + K), Xavier's.
    width = model.backbone.embed_dim
    guess = math.log(VOCABULARY) + width / (width + VOCABULARY)
    assert output.metrics["token_loss"].item() == pytest.approx(guess, abs=0.15)
    # Rows after a LayerNorm have variance one: two that know nothing of each other differ by two.
    assert 1.0 < output.metrics["alignment_loss"].item() < 2.5
    expected = guess + 2 * output.metrics["alignment_loss"].item()
    assert output.loss.item() == pytest.approx(expected, abs=0.15)


def test_head_and_mask_token_start_as_the_released_ones_do() -> None:
    """Xavier over all linear layers, the head's among them; the mask token cut at one deviation of 0.02."""
    backbone = build_backbone(BackboneOptions(name="vit_tiny"), seed=1)
    model = CAE(backbone, 8192, CAEOptions(), seed=2)
    assert model.head.weight.std().item() == pytest.approx((2 / (192 + 8192)) ** 0.5, rel=0.01)  # 0.0154
    assert model.head.weight.abs().max().item() == pytest.approx((6 / (192 + 8192)) ** 0.5, rel=0.01)
    assert model.mask_token.abs().max() <= 0.02
    assert model.mask_token.std().item() == pytest.approx(0.0108, rel=0.2)


def test_stochastic_depth_of_the_neck_grows_in_regressor_and_decoder_as_released() -> None:
    shape = BackboneOptions(name="vit_demo", image_size=4 * PATCH, patch_size=PATCH, drop_path_rate=0.3)
    options = CAEOptions(masked=8, regressor_depth=4, decoder_depth=3)
    neck = CAE(build_backbone(shape, seed=1), VOCABULARY, options, seed=2).neck
    assert neck.drop_path_rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.0, 0.15, 0.3])
    scales = neck._scales(torch.arange(20_000))
    assert scales is not None
    assert (scales == 0).float().mean(2).flatten().tolist() == pytest.approx(
        [rate for rate in neck.drop_path_rates for _ in range(2)], abs=0.02
    )
    torch.testing.assert_close(scales.mean(2), torch.ones(7, 2), atol=0.03, rtol=0)


def test_positions_tell_masked_patches_apart() -> None:
    model, (images, _, seeds) = cae(), batch(2)
    logits = model.predict(images, model.order(seeds))

    distances = torch.cdist(logits[0], logits[0]) + torch.eye(8)
    assert distances.min() > 0.1


def test_the_order_in_which_masked_patches_are_listed_does_not_matter() -> None:
    model, (images, _, seeds) = cae(), batch()
    order = model.order(seeds)
    turned = torch.cat([order[:, : model.context].flip(1), order[:, model.context :].flip(1)], dim=1)

    torch.testing.assert_close(
        model.predict(images, turned).flip(1), model.predict(images, order), atol=1e-5, rtol=1e-5
    )


def test_stochastic_depth_comes_from_the_seeds_and_is_off_in_evaluation() -> None:
    model, (images, tokens, seeds) = cae(drop_path_rate=0.5), batch()
    first = model(images, tokens, seeds).loss
    torch.rand(3)
    assert torch.equal(model(images, tokens, seeds).loss, first)

    order = model.order(seeds)
    rows = model.rows(images, order)[:, : 1 + model.context]
    assert not torch.equal(model.guess(rows, order, seeds).latent, model.guess(rows, order, seeds + 100).latent)
    model.eval()
    assert torch.equal(model.guess(rows, order, seeds).latent, model.guess(rows, order, seeds + 100).latent)


def test_the_neck_has_as_many_parameters_as_its_blocks_say() -> None:
    width = 64
    linears = 4 * width * width + 8 * width * width
    regressor_block = linears + (3 + 4 + 1) * width + 4 * 2 * width + 2 * width  # biases, four norms, two LayerScales
    decoder_block = linears + (4 + 4 + 1) * width + 2 * 2 * width + 2 * width
    expected = 2 * regressor_block + 2 * decoder_block + 2 * 2 * width

    model = cae()
    assert sum(p.numel() for p in model.neck.parameters()) == expected
    assert sum(p.numel() for p in model.parameters()) == (
        expected + sum(p.numel() for p in model.backbone.parameters()) + width + (width + 1) * VOCABULARY
    )


def test_building_one_leaves_the_global_random_state_alone_and_repeats_for_a_seed() -> None:
    state = torch.get_rng_state()
    first, second = cae(), cae()

    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_half_of_the_paper_s_patches_are_masked_by_default() -> None:
    model = CAE(build_backbone(BackboneOptions(name="vit_demo"), seed=1), VOCABULARY, CAEOptions(), seed=2)

    assert (model.predicted, model.context) == (98, 98)
    order = model.order(torch.arange(3))
    assert torch.equal(order.sort(1).values, torch.arange(196).expand(3, -1))


def test_masking_every_patch_is_refused() -> None:
    with pytest.raises(ModelError, match="16 masked patches of 16"):
        cae(masked=16)
