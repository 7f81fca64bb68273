"""Saved networks load in timm and here with equal outputs; released checkpoints are taken over exactly or refused."""

import argparse
import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.backbones import SHAPES, BackboneOptions, build_backbone
from models.errors import ModelError
from models.timm_files import import_official_checkpoint, load_backbone, load_classifier, save_backbone

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)  # not ImageNet's: a test must notice when they are not read
SMALL = {"image_size": 32, "patch_size": 16}
DEMO = BackboneOptions(name="vit_demo", **SMALL)


def drawn(model: VisionTransformer, *, seed: int = 0) -> VisionTransformer:
    """`model` with every weight away from its initial value, norms and LayerScales too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).uniform_(-0.05, 0.05, generator=generator))
    return model.eval()


def save(model: VisionTransformer, options: BackboneOptions, folder: Path, **more: object) -> Path:
    save_backbone(model, options, folder, mean=MEAN, std=STD, **more)
    return folder


def in_timm(folder: Path, **arguments: object) -> VisionTransformer:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **arguments).eval()


def images(size: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(model: VisionTransformer, size: int) -> Tensor:
    return model.eval().forward_features(images(size))


def saved_demo(tmp_path: Path) -> Path:
    return save(drawn(build_backbone(DEMO, seed=0)), DEMO, tmp_path / "demo")


def demo_classifier(*, classes: int = 5, heads: int = 4) -> VisionTransformer:
    shape = SHAPES["vit_demo"]
    return drawn(
        VisionTransformer(
            img_size=32,
            patch_size=16,
            embed_dim=shape.width,
            depth=shape.depth,
            num_heads=heads,
            num_classes=classes,
            global_pool="avg",
            init_values=0.1,
        )
    )


# ---------------------------------------------------------------------------------------------------- backbones


STOCK: dict[str, tuple[str, dict[str, int]]] = {
    "vit_tiny": ("vit_tiny_patch16_224", {}),
    "vit_small": ("vit_small_patch16_224", {}),
    "vit_base": ("vit_base_patch16_224", {}),
    "vit_demo": ("vit_tiny_patch16_224", {"embed_dim": 64, "depth": 4, "num_heads": 4}),
}


@dataclass(frozen=True)
class Saved:
    name: str
    backbone: VisionTransformer
    folder: Path


@pytest.fixture(scope="module", params=list(SHAPES))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    options = BackboneOptions(name=request.param)
    backbone = drawn(build_backbone(options, seed=0))
    folder = save(backbone, options, tmp_path_factory.mktemp(request.param))
    yield Saved(request.param, backbone, folder)
    (folder / "model.safetensors").unlink()  # pytest keeps the directories of three runs; a ViT-B is 340 MB


def test_timm_computes_the_same_features_from_the_directory(saved: Saved):
    assert torch.equal(features(in_timm(saved.folder), 224), features(saved.backbone, 224))
    assert sorted(file.name for file in saved.folder.iterdir()) == ["config.json", "model.safetensors"]


def test_the_weights_load_strictly_into_a_network_made_by_timm(saved: Saved):
    architecture, arguments = STOCK[saved.name]
    stock = timm.create_model(architecture, num_classes=0, device="meta", init_values=0.1, **arguments)
    stock.load_state_dict(load_file(saved.folder / "model.safetensors"), strict=True, assign=True)
    for name, tensor in saved.backbone.state_dict().items():
        assert torch.equal(stock.state_dict()[name], tensor), name


def test_the_config_tells_timm_only_what_its_architecture_does_not_imply(saved: Saved):
    config = json.loads((saved.folder / "config.json").read_text())
    architecture, arguments = STOCK[saved.name]
    assert config["architecture"] == architecture
    assert config["model_args"] == arguments | {"init_values": 0.1}


@pytest.mark.parametrize(
    "options",
    [
        BackboneOptions(name="vit_demo", image_size=32, patch_size=16, layer_scale=0),
        BackboneOptions(name="vit_demo", image_size=224, patch_size=32),
        BackboneOptions(name="vit_demo", image_size=448, patch_size=16),
        BackboneOptions(name="vit_demo"),
    ],
    ids=["no LayerScale", "patches of 32", "images of 448", "stock sizes"],
)
def test_options_come_back_from_the_directory(options: BackboneOptions, tmp_path: Path):
    backbone = drawn(build_backbone(options, seed=0))
    folder = save(backbone, options, tmp_path)
    expected = features(backbone, options.image_size)
    assert torch.equal(features(in_timm(folder), options.image_size), expected)
    assert torch.equal(features(load_backbone(folder), options.image_size), expected)


def test_timm_adds_a_fresh_head_to_the_saved_weights(tmp_path: Path):
    folder = saved_demo(tmp_path)
    backbone = load_backbone(folder)
    classifier = in_timm(folder, num_classes=10)
    left = set(classifier.state_dict()) - set(backbone.state_dict())
    assert left == {"head.weight", "head.bias"}
    assert classifier.head.out_features == 10
    assert torch.equal(features(classifier, 32), features(backbone, 32))


def test_fine_tuning_in_timm_starts_from_the_blocks_with_a_fresh_norm_and_head(tmp_path: Path):
    folder = saved_demo(tmp_path)
    saved, tuned = load_backbone(folder).state_dict(), in_timm(folder, num_classes=10, global_pool="avg").state_dict()
    assert set(tuned) - set(saved) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert set(saved) - set(tuned) == {"norm.weight", "norm.bias"}
    assert all(torch.equal(tuned[name], saved[name]) for name in set(saved) & set(tuned))
    assert (tuned["fc_norm.weight"] == 1).all()


def test_timm_reads_the_preprocessing_from_the_directory(tmp_path: Path):
    save(drawn(build_backbone(DEMO, seed=0)), DEMO, tmp_path, interpolation="bilinear", crop_pct=0.9)
    data = timm.data.resolve_model_data_config(in_timm(tmp_path))
    assert data | {"mean": tuple(data["mean"]), "std": tuple(data["std"])} == {
        "input_size": (3, 32, 32),
        "interpolation": "bilinear",
        "mean": MEAN,
        "std": STD,
        "crop_pct": 0.9,
        "crop_mode": "center",
    }


def test_the_same_weights_give_the_same_bytes(tmp_path: Path):
    backbone = drawn(build_backbone(DEMO, seed=0))
    one = save(backbone, DEMO, tmp_path / "one", extra={"objective": "mapet", "alpha": 1})
    two = save(backbone.train(), DEMO, tmp_path / "two", extra={"alpha": 1, "objective": "mapet"})
    for name in ("config.json", "model.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert json.loads((one / "config.json").read_text())["mapet"] == {"objective": "mapet", "alpha": 1}
    in_timm(one)


def test_weights_are_as_readable_as_any_file(tmp_path: Path):
    folder = saved_demo(tmp_path)
    (folder / "other").touch()
    assert (folder / "model.safetensors").stat().st_mode == (folder / "other").stat().st_mode


@pytest.mark.parametrize(
    ("described", "difference"),
    [
        (BackboneOptions(name="vit_tiny", **SMALL), "missing: blocks.4.norm1.weight"),
        (BackboneOptions(name="vit_demo", image_size=48), "of another shape: pos_embed"),
        (BackboneOptions(name="vit_demo", layer_scale=0, **SMALL), "unexpected: blocks.0.ls1.gamma"),
    ],
)
def test_options_of_another_network_are_not_written(described: BackboneOptions, difference: str, tmp_path: Path):
    with pytest.raises(ModelError, match=difference):
        save(build_backbone(DEMO, seed=0), described, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_another_number_of_heads_is_noticed_although_no_shape_tells(tmp_path: Path):
    with pytest.raises(ModelError, match=r"\[2\] attention heads instead of 4"):
        save(demo_classifier(heads=2), DEMO, tmp_path)


def test_loading_sets_stochastic_depth_and_leaves_the_random_state_alone(tmp_path: Path):
    folder = saved_demo(tmp_path)
    before = torch.get_rng_state()
    backbone = load_backbone(folder, drop_path_rate=0.3)
    assert torch.equal(torch.get_rng_state(), before)
    assert backbone.training
    assert [getattr(block.drop_path1, "drop_prob", 0) for block in backbone.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])


# ------------------------------------------------------------------------------------------------- classifiers


def test_a_classifier_is_saved_with_its_norm_and_head(tmp_path: Path):
    classifier = demo_classifier(classes=5)
    folder = save(classifier, DEMO, tmp_path)
    with torch.no_grad():
        expected = classifier(images(32))
        assert torch.equal(in_timm(folder)(images(32)), expected)
        assert torch.equal(load_classifier(folder).eval()(images(32)), expected)
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_classes"], config["global_pool"]) == (5, "avg")


def test_the_backbone_of_a_classifier_is_everything_but_its_head(tmp_path: Path):
    classifier = demo_classifier()
    backbone = load_backbone(save(classifier, DEMO, tmp_path))
    assert set(classifier.state_dict()) - set(backbone.state_dict()) == {"head.weight", "head.bias"}
    assert torch.equal(features(backbone, 32), features(classifier, 32))


def test_a_backbone_is_no_classifier(tmp_path: Path):
    with pytest.raises(ModelError, match="without a classifier"):
        load_classifier(saved_demo(tmp_path))


# --------------------------------------------------------------------------------------- directories that are refused


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_incomplete_directory_is_refused_naming_the_missing_file(name: str, tmp_path: Path):
    folder = saved_demo(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"demo: {name} is missing"):
        load_backbone(folder)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"nowhere: config\.json is missing"):
        load_backbone(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        "{}",
        '{"architecture": "vit_none", "pretrained_cfg": {}}',
        '{"architecture": "vit_tiny_patch16_224", "model_args": {"colour": 1}, "pretrained_cfg": {}}',
        '{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"colour": 1}}',
        '{"architecture": "resnet18", "pretrained_cfg": {}}',
    ],
)
def test_a_config_that_names_no_network_is_refused(config: str, tmp_path: Path):
    folder = saved_demo(tmp_path)
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"config\.json names"):
        load_backbone(folder)


def test_damaged_weights_are_refused(tmp_path: Path):
    weights = saved_demo(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        load_backbone(weights.parent)


def test_weights_of_another_network_are_refused_naming_the_first_of_each_kind(tmp_path: Path):
    folder = saved_demo(tmp_path)
    state = load_file(folder / "model.safetensors")
    del state["blocks.1.ls1.gamma"]
    state |= {"mask_token": torch.zeros(1), "norm.bias": torch.zeros(3), "decoder.bias": torch.zeros(1)}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelError) as refused:
        load_backbone(folder)
    assert "missing: blocks.1.ls1.gamma; unexpected: decoder.bias and 1 more" in str(refused.value)
    assert "of another shape: norm.bias ([3] instead of [64])" in str(refused.value)


# ----------------------------------------------------------------------------------------- released checkpoints


def official_shapes(width: int, *, classes: int, patch: int = 16, patches: int = 4) -> dict[str, list[int]]:
    """The 200 tensors of a `vit_standard_*` of the released code with average pooling, in its order."""
    block = {
        "norm1.weight": [width],
        "norm1.bias": [width],
        "attn.kv.weight": [2 * width, width],
        "attn.kv.bias": [2 * width],
        "attn.q.weight": [width, width],
        "attn.q.bias": [width],
        "attn.proj.weight": [width, width],
        "attn.proj.bias": [width],
        "ls1.gamma": [width],
        "norm2.weight": [width],
        "norm2.bias": [width],
        "mlp.fc1.weight": [4 * width, width],
        "mlp.fc1.bias": [4 * width],
        "mlp.fc2.weight": [width, 4 * width],
        "mlp.fc2.bias": [width],
        "ls2.gamma": [width],
    }
    return {
        "cls_token": [1, 1, width],
        "pos_embed": [1, patches + 1, width],
        "patch_embed.proj.weight": [width, 3, patch, patch],
        "patch_embed.proj.bias": [width],
        **{f"blocks.{i}.{name}": shape for i in range(12) for name, shape in block.items()},
        "fc_norm.weight": [width],
        "fc_norm.bias": [width],
        "head.weight": [classes, width],
        "head.bias": [classes],
    }


def official_state(**options: int) -> dict[str, Tensor]:
    """Random weights under which every tensor moves the logits."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) / math.sqrt(shape[-1] if len(shape) == 2 else 4)
        for name, shape in official_shapes(192, classes=7, **options).items()
    }


def unfilled_state(width: int, **options: int) -> dict[str, Tensor]:
    """All zeros that take no place: torch writes the one number that all elements share."""
    return {name: torch.zeros(()).expand(shape) for name, shape in official_shapes(width, **options).items()}


def write_official(path: Path, state: dict[str, Tensor], **more: object) -> Path:
    arguments = argparse.Namespace(model="vit_standard_tiny_patch16_224", lr=5e-4, device=torch.device("cpu"), aa=None)
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-6, "params": [0]}]}
    checkpoint = {"epoch": 299, "arch": "vit_standard_tiny_patch16_224", "state_dict": state, "optimizer": optimizer}
    checkpoint |= {"version": 2, "args": arguments, "amp_scaler": {"scale": 65536.0}, "metric": 75.5}
    torch.save(checkpoint | more, path)
    return path


def official_logits(state: dict[str, Tensor], pixels: Tensor, *, heads: int) -> Tensor:
    """The released classifier in evaluation, head by head, with queries apart from keys and values."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def attention(x: Tensor, name: str) -> Tensor:
        query, (key, value) = linear(x, f"{name}.q"), linear(x, f"{name}.kv").chunk(2, dim=-1)
        size, seen = x.shape[-1] // heads, []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            scores = query[..., own] @ key[..., own].mT / math.sqrt(size)
            seen.append(scores.softmax(dim=-1) @ value[..., own])
        return linear(torch.cat(seen, dim=-1), f"{name}.proj")

    patch = state["patch_embed.proj.weight"]
    x = F.conv2d(pixels, patch, state["patch_embed.proj.bias"], stride=patch.shape[-1]).flatten(2).mT
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + state["pos_embed"]
    for block in (f"blocks.{i}" for i in range(12)):
        x = x + state[f"{block}.ls1.gamma"] * attention(norm(x, f"{block}.norm1"), f"{block}.attn")
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + state[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
    return linear(norm(x[:, 1:].mean(dim=1), "fc_norm"), "head")


def test_a_released_classifier_gives_its_own_logits_after_import(tmp_path: Path):
    state = official_state()
    imported = import_official_checkpoint(write_official(tmp_path / "released.tar", state))
    with torch.no_grad():
        logits = imported.model.eval()(images(32, count=4))
    expected = official_logits(state, images(32, count=4), heads=3)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_an_imported_classifier_is_saved_as_any_other(tmp_path: Path):
    imported = import_official_checkpoint(write_official(tmp_path / "released.tar", official_state()))
    folder = save(imported.model, imported.options, tmp_path / "out", crop_pct=0.9)
    with torch.no_grad():
        assert torch.equal(in_timm(folder)(images(32)), imported.model.eval()(images(32)))


@pytest.mark.parametrize(("width", "name"), [(192, "vit_tiny"), (384, "vit_small"), (768, "vit_base")])
def test_shape_patch_size_and_classes_are_read_off_the_tensors(width: int, name: str, tmp_path: Path):
    state = unfilled_state(width, classes=9, patch=8, patches=9)
    imported = import_official_checkpoint(write_official(tmp_path / "released.tar", state))
    expected = BackboneOptions(name=name, image_size=24, patch_size=8, drop_path_rate=0, layer_scale=0.1)
    assert imported.options == expected
    assert imported.model.num_classes == 9
    assert imported.model.blocks[0].attn.num_heads == SHAPES[name].heads


def test_names_of_parallel_training_and_averaged_weights_are_understood(tmp_path: Path):
    state = official_state()
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    averaged = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    path = write_official(tmp_path / "released.tar", parallel, state_dict_ema=averaged)
    assert torch.equal(import_official_checkpoint(path).model.head.weight, state["head.weight"])


def test_a_released_checkpoint_that_does_not_fit_names_the_first_of_each_kind(tmp_path: Path):
    state = unfilled_state(192, classes=7)
    del state["blocks.3.attn.q.bias"], state["blocks.4.attn.kv.weight"]
    state |= {"norm.weight": torch.zeros(192), "blocks.0.attn.kv.bias": torch.zeros(192)}
    with pytest.raises(ModelError) as refused:
        import_official_checkpoint(write_official(tmp_path / "released.tar", state))
    assert "missing: blocks.3.attn.q.bias and 1 more; unexpected: norm.weight" in str(refused.value)
    assert "of another shape: blocks.0.attn.kv.bias ([192] instead of [384])" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.weight": torch.zeros(7)}, r"head.weight has the shape \[7\]"),
        ({"pos_embed": torch.zeros(1, 6, 192)}, "for 5 patches was never released"),
        ({"patch_embed.proj.weight": torch.zeros(64, 3, 16, 16)}, "a network 64 wide"),
        ({"blocks.12.norm1.weight": torch.zeros(192)}, "unexpected: blocks.12.norm1.weight"),
    ],
)
def test_a_network_that_was_never_released_is_refused(change: dict[str, Tensor], message: str, tmp_path: Path):
    path = write_official(tmp_path / "released.tar", unfilled_state(192, classes=7) | change)
    with pytest.raises(ModelError, match=message):
        import_official_checkpoint(path)


def test_a_checkpoint_of_pre_training_is_no_classifier(tmp_path: Path):
    state = unfilled_state(192, classes=7)
    del state["head.weight"], state["head.bias"]
    with pytest.raises(ModelError, match=r"head\.weight is missing"):
        import_official_checkpoint(write_official(tmp_path / "released.tar", state))


class Touch:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_code_inside_a_checkpoint_is_refused_and_not_run(tmp_path: Path):
    trace = tmp_path / "ran"
    path = write_official(tmp_path / "released.tar", unfilled_state(192, classes=7), metric=Touch(trace))
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        import_official_checkpoint(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Touch(trace)))  # the trap does work where pickles are trusted
    assert trace.exists()


def test_a_missing_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"none\.tar: not a readable checkpoint"):
        import_official_checkpoint(tmp_path / "none.tar")
