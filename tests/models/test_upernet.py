"""UperNet on a Vision Transformer: its heads against transformers' ones, its pyramid, its loss, and that it learns."""

import math
from collections.abc import Iterator

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import UperNetConfig
from transformers.models.upernet import modeling_upernet as theirs

from models.errors import ModelError
from models.heads.segmenter import SegmentationLogits, UperNetSegmenter
from models.heads.segmenter_options import SegmenterOptions
from models.heads.upernet import FCNHead, UperNetHead, ViTFeaturePyramid, without_channels
from models.vit.backbones import build_backbone
from models.vit.options import BackboneOptions

SIDE, PATCH = 32, 8
CLASSES = 3
WIDTHS = [6, 8, 10, 12]
THEIR_NAMES = {
    "pooled": "psp_modules",
    "joined": "bottleneck",
    "laterals": "lateral_convs",
    "outputs": "fpn_convs",
    "fused": "fpn_bottleneck",
    "classifier": "classifier",
    "conv": "convs.0",  # of the auxiliary head
}


def backbone(*, side: int = SIDE, **choices: float) -> VisionTransformer:
    shape = BackboneOptions(name="vit_demo", image_size=side, patch_size=PATCH, drop_path_rate=0.0, **choices)
    return build_backbone(shape, seed=1)


def segmenter(*, side: int = SIDE, seed: int = 2, **choices: float) -> UperNetSegmenter:
    options = SegmenterOptions(image_size=SIDE, blocks=(0, 1, 2, 3), channels=32, auxiliary_channels=16, **choices)
    return UperNetSegmenter(backbone(side=side), CLASSES, options, seed=seed)


def random() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def levels() -> list[Tensor]:
    generator = random()
    sides = (13, 7, 4, 2)  # odd ones: enlarging them must not rely on factors of 2
    pairs = zip(WIDTHS, sides, strict=True)
    return [torch.randn(2, width, side, side, generator=generator, dtype=torch.float64) for width, side in pairs]


def unsettle(module: nn.Module) -> None:
    """Make norms that do something in evaluation mode."""
    generator = random()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))


def their_state(ours: nn.Module) -> dict[str, Tensor]:
    state = {}
    for name, tensor in ours.state_dict().items():
        part, *numbers, kind = name.split(".")
        if numbers:  # the last one is 0 for a convolution, 1 for its norm
            numbers[-1] = ("conv", "batch_norm")[int(numbers[-1])]
        if part == "pooled":
            numbers.insert(1, "1")  # beside their pooling
        state[".".join([THEIR_NAMES[part], *numbers, kind])] = tensor
    return state


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Operations of microseconds: waking another thread for each of them takes ten times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("training", [True, False])
def test_the_head_computes_what_transformers_upernet_computes_with_its_weights(training: bool) -> None:
    ours = UperNetHead(WIDTHS, 9, CLASSES, pool_scales=(1, 2, 3, 6), dropout=0.0, generator=random()).double()
    unsettle(ours)
    config = UperNetConfig(hidden_size=9, num_labels=CLASSES, pool_scales=[1, 2, 3, 6])
    reference = theirs.UperNetHead(config, in_channels=WIDTHS).double()
    reference.load_state_dict(their_state(ours))

    expected = reference.train(training)(levels())

    assert expected.shape == (2, CLASSES, 13, 13)
    torch.testing.assert_close(ours.train(training)(levels()), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_the_auxiliary_head_computes_what_transformers_fcn_head_computes(training: bool) -> None:
    ours = FCNHead(WIDTHS[2], 5, CLASSES, dropout=0.0, generator=random()).double()
    unsettle(ours)
    config = UperNetConfig(num_labels=CLASSES, auxiliary_channels=5, auxiliary_in_channels=None)
    reference = theirs.UperNetFCNHead(config, in_channels=WIDTHS).double()
    reference.load_state_dict(their_state(ours))

    expected = reference.train(training)(levels())

    torch.testing.assert_close(ours.train(training)(levels()[2]), expected, atol=1e-10, rtol=1e-10)


def test_the_loss_is_mmsegmentations_over_all_pixels_of_both_heads() -> None:
    """Those without a class cost nothing, and count."""
    generator = random()
    logits = [torch.randn(2, CLASSES, 4, 4, generator=generator) for _ in range(2)]
    labels = torch.randint(CLASSES, (2, 4, 4), generator=generator).to(torch.uint8)
    labels[0, :2] = 255
    entropy = nn.CrossEntropyLoss(ignore_index=255, reduction="none")

    result = segmenter().loss(SegmentationLogits(*logits), labels)

    expected = entropy(logits[0], labels.long()).mean() + 0.4 * entropy(logits[1], labels.long()).mean()
    torch.testing.assert_close(result.loss, expected)


def test_the_accuracy_of_a_batch_is_the_mean_of_its_images() -> None:
    logits = torch.randn(3, CLASSES, 4, 4, generator=random())
    labels = torch.randint(CLASSES, (3, 4, 4), generator=random()).to(torch.uint8)
    labels[0, :3] = 255

    def accuracy(some: slice) -> Tensor:
        logits_of_both = SegmentationLogits(logits[some], logits[some])
        return segmenter().loss(logits_of_both, labels[some]).metrics["pixel_accuracy"]

    alone = torch.stack([accuracy(slice(image, image + 1)) for image in range(3)])
    torch.testing.assert_close(accuracy(slice(None)), alone.mean())
    right = (logits[0].argmax(0) == labels[0])[3]
    torch.testing.assert_close(alone[0], right.float().mean())


def test_a_batch_without_any_label_costs_nothing_instead_of_nan() -> None:
    logits = torch.randn(2, CLASSES, 4, 4, generator=random()).requires_grad_()

    result = segmenter().loss(SegmentationLogits(logits, logits), torch.full((2, 4, 4), 255, dtype=torch.uint8))
    result.loss.backward()

    assert result.loss == 0
    assert not logits.grad.any()


def test_the_pyramid_has_four_resolutions_and_its_third_level_is_the_block_as_it_is() -> None:
    maps = [torch.randn(2, 6, 8, 8, generator=random()) for _ in range(4)]

    pyramid = ViTFeaturePyramid(6, generator=random())(maps)

    assert [tuple(level.shape) for level in pyramid] == [(2, 6, side, side) for side in (32, 16, 8, 4)]
    assert torch.equal(pyramid[2], maps[2])


def test_levels_are_made_of_the_named_blocks_without_final_norm_and_class_token() -> None:
    model, images = segmenter().eval(), torch.randn(2, 3, SIDE, SIDE, generator=random())
    rows = model.backbone._pos_embed(model.backbone.patch_embed(images))
    for block in model.backbone.blocks[:3]:
        rows = block(rows)

    side = SIDE // PATCH
    expected = rows[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    torch.testing.assert_close(model.levels(images)[2], expected)


def test_logits_have_the_images_size_and_prediction_is_the_main_head() -> None:
    model, images = segmenter().eval(), torch.randn(2, 3, SIDE, SIDE, generator=random())

    logits = model(images)

    assert logits.main.shape == logits.auxiliary.shape == (2, CLASSES, SIDE, SIDE)
    assert torch.equal(model.predict(images), logits.main)


def test_positions_are_resampled_to_the_segmenter_s_size_and_the_class_token_s_stays() -> None:
    before, model = backbone(side=2 * SIDE).pos_embed, segmenter(side=2 * SIDE)

    assert model.backbone.pos_embed.shape == (1, 1 + (SIDE // PATCH) ** 2, before.shape[2])
    assert torch.equal(model.backbone.pos_embed[:, 0], before[:, 0])


def test_every_parameter_that_wants_a_gradient_gets_one_as_ddp_demands() -> None:
    deeper = build_backbone(BackboneOptions(name="vit_tiny", image_size=SIDE), seed=1)
    options = SegmenterOptions(image_size=SIDE, blocks=(0, 1, 2, 3), channels=8)
    model = UperNetSegmenter(deeper, 2, options, seed=0)
    labels = torch.randint(2, (2, SIDE, SIDE), generator=random()).to(torch.uint8)

    model.loss(model(torch.randn(2, 3, SIDE, SIDE, generator=random())), labels).loss.backward()

    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert any(name.startswith("backbone.blocks.4.") for name in without)
    assert "backbone.norm.weight" in without


def test_a_seed_draws_the_same_network_and_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (segmenter(seed=seed).head.state_dict() for seed in (2, 2, 4))

    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fused.0.weight"], other["fused.0.weight"])


def test_new_weights_are_spread_as_mmsegmentation_spreads_them() -> None:
    head = UperNetHead([64] * 4, 64, 50, generator=random())

    assert head.fused[0].weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not head.classifier.bias.any()


def test_deeper_blocks_learn_faster_and_the_heads_at_the_full_rate() -> None:
    """ViT-B's 12 blocks at layer decay .75: the stem at .75^13, block i at .75^(12 - i)."""
    base = build_backbone(BackboneOptions(name="vit_tiny", image_size=SIDE), seed=1)  # as deep as ViT-B
    model = UperNetSegmenter(base, 2, SegmenterOptions(image_size=SIDE, channels=8), seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    learns = {
        names[id(parameter)]: (group.get("lr_scale", 1.0), group["weight_decay"])
        for group in model.parameter_groups(0.05, layer_decay=0.75)
        for parameter in group["params"]
    }

    assert set(learns) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    stem = pytest.approx(0.75**13)
    assert learns["backbone.patch_embed.proj.weight"] == (stem, 0.05)
    assert learns["backbone.patch_embed.proj.bias"] == (stem, 0.0)
    assert learns["backbone.cls_token"] == learns["backbone.pos_embed"] == (stem, 0.0)
    for block in range(12):
        assert learns[f"backbone.blocks.{block}.mlp.fc1.weight"] == (pytest.approx(0.75 ** (12 - block)), 0.05)
        assert learns[f"backbone.blocks.{block}.ls1.gamma"] == (pytest.approx(0.75 ** (12 - block)), 0.0)
    above = {name: how for name, how in learns.items() if not name.startswith("backbone.")}
    assert {scale for scale, _ in above.values()} == {1.0}
    assert all((decay == 0) == (model.get_parameter(name).ndim == 1) for name, (_, decay) in above.items())


def test_dropout_leaves_out_the_named_share_of_channels_and_keeps_the_mean() -> None:
    maps, seeds = torch.ones(200, 50, 2, 2), torch.arange(200)

    dropped = without_channels(maps, seeds, 0.1, 20)

    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.9)]
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(dropped, dropped[:, :, :1, :1].expand_as(dropped))
    assert torch.equal(without_channels(maps[3:5], seeds[3:5], 0.1, 20), dropped[3:5])


def test_what_training_leaves_out_comes_from_the_images_seeds_alone() -> None:
    shape = BackboneOptions(name="vit_demo", image_size=SIDE, patch_size=PATCH, drop_path_rate=0.5)
    options = SegmenterOptions(image_size=SIDE, blocks=(0, 1, 2, 3), channels=32, dropout=0.0)
    images, seeds = torch.randn(4, 3, SIDE, SIDE, generator=random()), torch.arange(4)
    deep = UperNetSegmenter(build_backbone(shape, seed=1), CLASSES, options, seed=2)
    dropping = segmenter(dropout=0.5)
    for model in (deep, dropping):
        first = model(images, seeds)
        torch.rand(1)  # moves the global generator
        again, other, none = (model(images, given) for given in (seeds, seeds + 4, None))
        for which in ("main", "auxiliary"):
            assert torch.equal(getattr(first, which), getattr(again, which))
            assert not torch.equal(getattr(first, which), getattr(other, which))
            assert not torch.equal(getattr(first, which), getattr(none, which))
        model.eval()
        assert torch.equal(model(images, seeds).main, model(images).main)


def test_saving_memory_changes_no_gradient() -> None:
    gradients = []
    images, labels = torch.randn(2, 3, SIDE, SIDE, generator=random()), torch.ones(2, SIDE, SIDE, dtype=torch.uint8)
    for saving in (False, True):
        model = segmenter()
        model.backbone.set_grad_checkpointing(saving)
        model.loss(model(images, torch.arange(2)), labels).loss.backward()
        gradients.append(model.backbone.blocks[0].mlp.fc1.weight.grad)
    assert gradients[0].any()
    assert torch.equal(*gradients)


@pytest.mark.usefixtures("one_thread")
def test_the_network_overfits_four_images() -> None:
    """Each has a square, whose colour is its class, at a place of its own."""
    model = segmenter(dropout=0.0)
    images, labels = 0.1 * torch.randn(4, 3, SIDE, SIDE, generator=random()), torch.zeros(4, SIDE, SIDE).to(torch.uint8)
    for number, (top, left) in enumerate([(2, 3), (5, 17), (16, 1), (13, 14)]):
        label, area = 1 + number % 2, (slice(top, top + 14), slice(left, left + 13))
        images[(number, label, *area)] += 2
        labels[(number, *area)] = label
    labels[:, :1] = 255
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(model(images), labels).loss.backward()
        optimizer.step()

    found = model.eval().predict(images).argmax(1)[labels != 255]
    wanted = labels[labels != 255]
    for label in range(CLASSES):
        both, either = (found == label) & (wanted == label), (found == label) | (wanted == label)
        assert both.sum() > 0.9 * either.sum()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"blocks": (3, 5, 7, 11)}, "backbone with 4 blocks; name 4 of 0 to 3"),
        ({"blocks": (0, 1, 1, 3)}, "ascending"),
        ({"image_size": 36}, "multiple of 8"),
        ({"image_size": 8}, "at least 16"),
    ],
)
def test_options_that_do_not_fit_the_backbone_are_refused(choices: dict[str, object], message: str) -> None:
    options = SegmenterOptions(**{"image_size": SIDE, "blocks": (0, 1, 2, 3), **choices})

    with pytest.raises(ModelError, match=message):
        UperNetSegmenter(backbone(), CLASSES, options, seed=0)
