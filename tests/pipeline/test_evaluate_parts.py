"""The parts of the evaluation protocols, against numbers computed by hand or published."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup

from models.errors import ModelError
from models.heads.linear import POOLINGS, LinearHeads
from models.heads.token_classifier import TokenMLP, TokenViT
from models.vit.backbones import build_backbone
from models.vit.classifier import build_classifier, classify
from models.vit.options import BackboneOptions
from pipeline.data.labelled_images import seeded
from pipeline.engine.errors import PipelineError
from pipeline.stages.evaluate.evaluation_options import FineTuneOptions
from pipeline.stages.evaluate.fine_tune import FineTuning, mixing, train_transform
from pipeline.stages.evaluate.frozen_features import Features, HeadTraining, nearest_neighbours
from pipeline.stages.evaluate.protocol import top_correct, top_k_correct, write_top_scores
from pipeline.stages.evaluate.scores import read_scores, score
from pipeline.stages.evaluate.tokens_as_input import TokenClassification
from pipeline.training.optimization import Schedule, build_optimizer
from pipeline.training.options import TrainingOptions

DEMO = BackboneOptions(name="vit_demo", image_size=64)


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_the_classifier_is_timms_own_forward() -> None:
    model = build_classifier(DEMO, 5, weights=None, seed=0).eval()
    with torch.no_grad():
        assert torch.allclose(classify(model, images(), torch.arange(2)), model(images()), atol=1e-5)


def test_a_classifier_starts_from_the_backbones_blocks_with_a_fresh_norm_and_head() -> None:
    backbone = build_backbone(DEMO, seed=3)
    model = build_classifier(DEMO, 5, weights=backbone.state_dict(), seed=0)
    for name, tensor in model.state_dict().items():
        if name in backbone.state_dict():
            assert torch.equal(tensor, backbone.state_dict()[name]), name
    assert {name.split(".")[0] for name in model.state_dict().keys() - backbone.state_dict().keys()} == {
        "fc_norm",
        "head",
    }


def test_weights_of_another_network_are_refused() -> None:
    weights = build_backbone(DEMO, seed=0).state_dict()
    del weights["blocks.2.norm1.weight"]
    with pytest.raises(ModelError, match=r"blocks\.2\.norm1\.weight"):
        build_classifier(DEMO, 5, weights=weights, seed=0)


def test_layer_decay_reaches_the_learning_rate_as_published_for_vit_base() -> None:
    """28 groups; the stem learns at .65^13 of the peak, block i at .65^(12 - i), norm and head at the peak."""
    with torch.device("meta"):
        model = build_classifier_on_meta()
    learner = FineTuning(model, FineTuneOptions())
    optimizer = build_optimizer(learner.parameter_groups(0.05), TrainingOptions(warmup_epochs=0))
    assert len(optimizer.param_groups) == 28
    Schedule(optimizer, TrainingOptions(peak_learning_rate=1.0, warmup_epochs=0), steps_per_epoch=1).set(0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    peak = max(rates.values())
    assert rates[id(model.pos_embed)] / peak == pytest.approx(0.65**13)
    assert rates[id(model.blocks[0].attn.qkv.weight)] / peak == pytest.approx(0.65**12)
    assert rates[id(model.blocks[11].mlp.fc1.weight)] / peak == pytest.approx(0.65)
    assert rates[id(model.head.weight)] == rates[id(model.fc_norm.bias)] == peak
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(model.pos_embed)] == decays[id(model.head.bias)] == 0
    assert decays[id(model.head.weight)] == 0.05


def build_classifier_on_meta() -> torch.nn.Module:
    import timm

    return timm.create_model("vit_base_patch16_224", init_values=0.1, global_pool="avg", num_classes=1000)


def test_mixing_gives_shares_of_classes_that_add_up_and_leaves_an_odd_image_alone() -> None:
    mix = mixing(FineTuneOptions(), 10)
    assert mix is not None
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with seeded(1):
        mixed, targets = mix(pixels, torch.tensor([0, 1, 2, 3, 4]))
    assert torch.allclose(targets.sum(1), torch.ones(5))
    assert torch.equal(mixed[4], pixels[4].float())
    assert torch.equal(mixed, mixed.round()), "8 bits, as timm's loader mixes them"
    assert targets[4, 4] == pytest.approx(0.9 + 0.01)  # smoothing .1 over ten classes
    partners = [set(share.topk(2).indices.tolist()) for share in targets[:4]]
    assert partners == [{0, 1}, {0, 1}, {2, 3}, {2, 3}], "neighbours of the step's random order"
    assert mixing(FineTuneOptions(mixup=0.0, cutmix=0.0), 10) is None


def test_mixing_is_timms_own_of_each_pair() -> None:
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, options = torch.tensor([0, 1, 2, 3, 4, 5]), FineTuneOptions()
    mix = mixing(options, 10)
    assert mix is not None
    theirs = Mixup(options.mixup, options.cutmix, label_smoothing=options.smoothing, num_classes=10)
    for seed in range(8):  # mixup and CutMix
        with seeded(seed):
            mixed, targets = mix(pixels, labels)
        for pair in (slice(0, 2), slice(2, 4), slice(4, 6)):
            with seeded(seed):
                expected, shares = theirs(pixels[pair].float(), labels[pair])
            assert torch.equal(mixed[pair], expected.round())
            assert torch.equal(targets[pair], shares)


def test_augmentation_depends_on_the_seed_alone_and_leaves_generators_as_they_were() -> None:
    transform = train_transform(FineTuneOptions(), 64)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8))

    def drawn(seed: int) -> torch.Tensor:
        with seeded(seed):
            return transform(picture)

    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_heads_are_float32_and_their_losses_are_added_whatever_autocast_is_around() -> None:
    heads = LinearHeads(8, 3, blocks=(0,), learning_rates=(0.1, 0.3), given_rate=0.1, seed=0)
    features, labels = torch.randn(20, 2, 8, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    learner, logits = HeadTraining(heads), heads(features[None])
    with torch.autocast("cpu", torch.bfloat16):
        found = learner(features, labels)
    found.loss.backward()
    each = torch.stack([F.cross_entropy(one, labels) for one in logits])
    torch.testing.assert_close(found.loss, each.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.metrics["head_loss"], each[heads.usual], rtol=1e-6, atol=0)
    for head, loss in zip(heads.heads, each, strict=True):
        [alone] = torch.autograd.grad(loss, [head.weight], retain_graph=True)
        torch.testing.assert_close(head.weight.grad, alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("network", "spared"),
    [
        (
            TokenViT(32, 5, patches=16, width=24, depth=1, heads=2),
            {"vit.cls_token", "vit.pos_embed", "vit.patch_embed.weight"},
        ),
        (TokenMLP(32, 5, width=24), {"embedding.weight"}),
    ],
)
def test_embedding_positions_and_class_token_of_token_classifiers_do_not_decay(
    network: TokenMLP | TokenViT, spared: set[str]
) -> None:
    groups = TokenClassification(network).parameter_groups(0.05)
    decays = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    matrices = {name for name, weight in network.named_parameters() if weight.ndim > 1}
    assert len(decays) == len(list(network.parameters()))
    assert {name for name, weight in network.named_parameters() if decays[id(weight)]} == matrices - spared
    assert spared < matrices


def test_heads_of_a_grid_learn_as_each_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(2, 20, 2, 8, generator=generator), torch.arange(20) % 3

    def trained(blocks: tuple[int, ...], rates: tuple[float, ...]) -> dict[str, torch.Tensor]:
        heads = LinearHeads(8, 3, blocks=blocks, learning_rates=rates, given_rate=rates[0], seed=0)
        with torch.no_grad():
            for head in heads.heads:  # the same start for every grid
                head.weight.fill_(0.01)
        optimizer = build_optimizer(heads.parameter_groups(0.0), TrainingOptions(epsilon=1e-30))
        for group in optimizer.param_groups:
            group["lr"] = max(rates) * group["lr_scale"]
        for _ in range(5):
            optimizer.zero_grad()
            heads.loss(heads(features[list(blocks)]), labels).backward()
            optimizer.step()
        return {choice.words: head.weight for choice, head in zip(heads.choices, heads.heads, strict=True)}

    together, alone = trained((0, 1), (0.1, 0.3)), trained((1,), (0.3,))
    assert len(together) == 2 * len(POOLINGS) * 2
    for words, weight in alone.items():
        assert torch.allclose(together[words], weight, atol=1e-5), words


def test_separable_features_are_separated_completely() -> None:
    labels = torch.arange(60) % 3
    features = torch.randn(1, 60, 2, 6, generator=torch.Generator().manual_seed(0))
    features[0, :, 1, :3] += 8 * torch.eye(3)[labels]
    heads = LinearHeads(6, 3, blocks=(0,), learning_rates=(0.05,), given_rate=0.05, seed=0)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        heads.loss(heads(features), labels).backward()
        optimizer.step()
    right = (heads(features).argmax(2) == labels).float().mean(1)
    found = dict(zip([choice.pooling for choice in heads.choices], right.tolist(), strict=True))
    assert found["mean"] == found["class+mean"] == 1.0
    assert found["class"] < 0.9  # nothing was put there


def test_neighbours_vote_by_their_similarity() -> None:
    train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [0.2, 0.8]])
    labels = torch.tensor([0, 0, 1, 1, 1])
    queries = torch.tensor([[2.0, 0.1], [0.3, 3.0]])  # lengths do not count
    [found] = nearest_neighbours([(train, labels)], [queries], classes=2, k=5, temperature=0.07)
    assert found.tolist() == [0, 1]
    # With votes that hardly depend on similarity the majority of all five wins.
    [found] = nearest_neighbours([(train, labels)], [queries], classes=2, k=5, temperature=100.0)
    assert found.tolist() == [1, 1]


def test_neighbours_are_the_same_however_many_are_looked_at_at_once() -> None:
    train, queries = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 7
    for k in (1, 5, 20, 100):
        [whole] = nearest_neighbours([(train, labels)], [queries], classes=7, k=k, temperature=0.07)
        pieces = zip(train.split(9), labels.split(9), strict=True)
        found = nearest_neighbours(pieces, queries.split(8), classes=7, k=k, temperature=0.07)
        assert torch.cat(found).tolist() == whole.tolist()


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-3, 0.0114])
def test_votes_at_a_low_temperature_are_the_nearest_neighbours(temperature: float) -> None:
    """exp(1 / 0.0112) is more than 32 bits hold: votes were infinite, and the first class of a tie won."""
    features = torch.nn.functional.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(40) % 5
    train, queries = features[:40], features[40:]
    [found] = nearest_neighbours([(train, labels)], [queries], classes=5, k=20, temperature=temperature)
    assert found.tolist() == labels[(queries @ train.T).argmax(1)].tolist()


def test_neighbours_that_are_alike_vote_alike_at_any_temperature() -> None:
    train, labels = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 2), torch.tensor([1, 1, 0, 0, 0])
    for temperature in (1e-300, 0.001, 0.07):
        [guess] = nearest_neighbours([(train, labels)], [train[:1]], classes=2, k=5, temperature=temperature)
        assert guess.tolist() == [1], temperature


def test_features_without_a_deviation_keep_their_scale() -> None:
    alone = torch.tensor([[1.0, 2.0], [3.0, 2.0]])  # one training image, and one to judge
    constant = torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 6.0]])
    for values, training, expected in [(alone, 1, [[0, 0], [2, 0]]), (constant, 2, [[-1, 0], [1, 0], [0, 1]])]:
        labels = torch.arange(len(values))
        found, theirs = Features.of(values, labels, training).standardised(np.arange(len(values)))
        assert found.tolist() == expected
        assert theirs.tolist() == labels.tolist()


def test_logits_that_are_no_numbers_are_no_right_answers() -> None:
    logits = torch.tensor([[float("nan"), 1.0, 0.0], [2.0, 1.0, 0.0]])
    assert top_k_correct(logits, torch.tensor([0, 0]), 1).tolist() == [False, True]


@pytest.mark.parametrize(("classes", "remark"), [(1, "of 1 class, always right"), (5, "of 5 classes, always right")])
def test_a_score_that_nothing_can_miss_says_so(classes: int, remark: str, tmp_path: Path) -> None:
    labels = torch.arange(10) % classes
    by_heart = top_correct(torch.nn.functional.one_hot(labels, classes).float(), labels)
    write_top_scores(tmp_path, by_heart, classes, "by heart")
    remarks = {found.name: found.remark for found in read_scores(tmp_path)}
    assert remarks == {"top1": remark if classes == 1 else "", "top5": remark}
    write_top_scores(tmp_path, top_correct(torch.eye(6), torch.arange(6)), 6, "by heart")
    assert [found.remark for found in read_scores(tmp_path)] == ["", ""]


def test_a_score_of_no_image_is_refused() -> None:
    with pytest.raises(PipelineError, match=r"top1: no image was judged.*check the validation split"):
        score("top1", np.array([], bool), "")


def test_the_interval_of_a_score_is_the_binomials() -> None:
    found = score("top1", np.arange(500) < 400, "of five hundred")
    half = 1.96 * np.sqrt(0.8 * 0.2 / 500) * 100
    assert found.value == 80
    assert (found.low, found.high) == (pytest.approx(80 - half, abs=0.8), pytest.approx(80 + half, abs=0.8))


def test_the_papers_token_classifier_does_not_see_where_tokens_are_and_the_vit_does() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 32, (3, 16), generator=generator)
    torch.manual_seed(0)
    mlp, vit = TokenMLP(32, 5, width=24), TokenViT(32, 5, patches=16, width=24, depth=2, heads=2).eval()
    with torch.no_grad():
        assert torch.allclose(mlp(tokens), mlp(tokens.flip(1)), atol=1e-6)
        assert not torch.allclose(vit(tokens), vit(tokens.flip(1)), atol=1e-4)
        assert mlp(tokens).shape == vit(tokens).shape == (3, 5)
    assert sum(p.numel() for p in TokenMLP(8192, 1000, width=192).parameters()) == 8192 * 192 + 193 * 192 + 193 * 1000
