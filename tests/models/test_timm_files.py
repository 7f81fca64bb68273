"""Saved networks load in timm and here with equal outputs; released checkpoints are taken over exactly or refused."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.errors import ModelError
from models.vit.backbones import build_backbone
from models.vit.options import SHAPES, BackboneOptions
from models.weights.timm_files import load_backbone, load_classifier
from tests.models.timm_files import MEAN, STD, images, in_timm, save

SMALL = {"image_size": 32, "patch_size": 16}
DEMO = BackboneOptions(name="vit_demo", **SMALL)


def drawn(model: VisionTransformer, *, seed: int = 0) -> VisionTransformer:
    """Return `model` with every weight away from its initial value, norms and LayerScales too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).uniform_(-0.05, 0.05, generator=generator))
    return model.eval()


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
