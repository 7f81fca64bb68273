"""Any network of timm as a patch encoder: grids, cuts, weights, digests, and what is refused."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import Tensor

from models.clip.encoder import load_clip, outline_clip
from models.clip.options import ClipOptions
from models.encoders.options import PACKAGED, EncoderOptions
from models.encoders.timm_encoder import TimmPatchEncoder, _filled, load_timm, outline_timm
from models.encoders.timm_weights import find_weights
from models.errors import ModelError


def options(timm_name: str, **others: Any) -> EncoderOptions:
    return EncoderOptions(**{"timm": timm_name, "weights": "", "precision": "fp32", **others})


def images(side: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.fixture
def vit(tmp_path: Path) -> Any:
    """Return a small Vision Transformer of timm with a class token and a head of seven classes, and save its state."""
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=7).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    return network


# Features


def test_features_are_the_patch_tokens_after_the_last_norm(vit: Any, tmp_path: Path) -> None:
    encoder = load_timm(options("test_vit", weights=str(tmp_path / "weights.pth")))
    features = encoder(images(160))
    expected = vit.forward_features((images(160).float() / 255 - 0.5) / 0.5)[:, vit.num_prefix_tokens :]
    assert (features.dtype, encoder.grid, encoder.width) == (torch.float16, (10, 10), 64)
    torch.testing.assert_close(features.float(), expected.detach(), atol=2e-3, rtol=2e-3)


def test_a_block_without_norm_is_what_the_next_block_sees(vit: Any, tmp_path: Path) -> None:
    seen: list[Tensor] = []
    vit.blocks[3].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vit.forward_features((images(160).float() / 255 - 0.5) / 0.5)
    weights = str(tmp_path / "weights.pth")
    encoder = load_timm(options("test_vit", weights=weights, block=2, norm=False))
    torch.testing.assert_close(encoder(images(160)).float(), seen[0][:, 1:].detach(), atol=2e-3, rtol=2e-3)
    assert len(encoder.network.blocks) == 3, "what comes after the block is not computed"


@pytest.mark.parametrize(
    ("name", "others", "grid", "width"),
    [
        ("vit_small_patch14_dinov2.lvd142m", {"image_size": 196}, (14, 14), 384),
        ("vit_small_patch16_dinov3.lvd1689m", {"image_size": 224}, (14, 14), 384),
        ("vit_base_patch16_siglip_224.v2_webli", {}, (14, 14), 768),
        ("eva02_tiny_patch14_224.mim_in22k", {"image_size": 196}, (14, 14), 192),
        ("convnext_tiny.fb_in1k", {"block": 2}, (14, 14), 384),
        ("swin_tiny_patch4_window7_224.ms_in1k", {"block": 2}, (14, 14), 384),
        ("tf_efficientnet_lite0.in1k", {"block": 3}, (14, 14), 112),
        ("resnet50.a1_in1k", {"image_size": 448}, (14, 14), 2048),
        ("aimv2_large_patch14_224.apple_pt", {"image_size": 196}, (14, 14), 1024),
        ("vit_pe_core_base_patch16_224.fb", {}, (14, 14), 768),
        ("hiera_tiny_224.mae", {"block": 2, "norm": False}, (14, 14), 384),
    ],
)
def test_every_family_gives_the_grid_of_k_clip(
    name: str, others: dict[str, Any], grid: tuple[int, int], width: int
) -> None:
    encoder = outline_timm(options(name, **others))
    assert (encoder.grid, encoder.width) == (grid, width)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext"])
def test_an_image_has_the_same_features_whatever_shares_its_batch(name: str) -> None:
    encoder = load_timm(options(name, image_size=96))
    together = encoder(images(96, count=3))
    assert together.shape == (3, encoder.grid[0] * encoder.grid[1], encoder.width)
    assert bool(torch.isfinite(together).all())
    torch.testing.assert_close(encoder(images(96, count=3)[1:2]), together[1:2], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("model", "grid", "width"),
    [("ViT-B-16-SigLIP2", (14, 14), 768), ("EVA02-B-16", (14, 14), 768), ("MobileCLIP2-S0", (8, 8), 512)],
)
def test_a_clip_whose_tower_is_of_timm_has_patches_too(model: str, grid: tuple[int, int], width: int) -> None:
    encoder = outline_clip(ClipOptions(model=model, pretrained=""))
    assert isinstance(encoder, TimmPatchEncoder)
    assert (encoder.grid, encoder.width) == (grid, width)


def test_a_tower_of_timm_takes_the_weights_of_a_whole_clip(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = open_clip.get_model_config("MobileCLIP2-S0")
    tower = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], {"layers": 1}).eval().visual
    state = {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}
    save_file(state, tmp_path / "clip.safetensors")
    weights = str(tmp_path / "clip.safetensors")
    encoder = load_clip(ClipOptions(model="MobileCLIP2-S0", pretrained=weights, precision="fp32"))
    pixels = (images(256).float() / 255 - encoder.mean) / encoder.std
    expected = tower.trunk.forward_intermediates(pixels, indices=[-1], intermediates_only=True)[0]
    torch.testing.assert_close(
        encoder(images(256)).float(), expected.flatten(2).transpose(1, 2).detach(), atol=2e-3, rtol=2e-3
    )
    with pytest.raises(ModelError, match="for that size; leave image_size out, or take the tower from timm"):
        outline_clip(ClipOptions(model="MobileCLIP2-S0", image_size=224))


# Weights


def test_learnt_positions_are_interpolated_to_another_size(vit: Any, tmp_path: Path) -> None:
    encoder = load_timm(options("test_vit", weights=str(tmp_path / "weights.pth"), image_size=96))
    assert encoder.grid == (6, 6)
    assert encoder(images(96)).shape == (2, 36, 64)


def test_the_digest_is_of_the_weights_that_count_and_not_of_their_file(vit: Any, tmp_path: Path) -> None:
    save_file(vit.state_dict(), tmp_path / "other.safetensors")
    of_file, of_other = (
        load_timm(options("test_vit", weights=str(tmp_path / name))) for name in ("weights.pth", "other.safetensors")
    )
    earlier = load_timm(options("test_vit", weights=str(tmp_path / "weights.pth"), block=2))
    assert of_file.digest == of_other.digest
    assert len({of_file.digest, earlier.digest, load_timm(options("test_vit")).digest}) == 3
    assert load_timm(options("test_vit")).digest == load_timm(options("test_vit")).digest


def test_a_directory_as_timm_saves_a_network_brings_its_own_weights(vit: Any, tmp_path: Path) -> None:
    timm.models.save_for_hf(vit, tmp_path / "saved")
    saved = load_timm(EncoderOptions(timm=str(tmp_path / "saved"), precision="fp32"))
    named = load_timm(options("test_vit", weights=str(tmp_path / "weights.pth")))
    assert (saved.name, saved.grid) == ("saved", named.grid)
    assert torch.equal(saved(images(160)), named(images(160)))


def test_packaged_weights_know_a_palace_and_a_daisy() -> None:
    chosen = EncoderOptions(timm="tf_efficientnet_lite0", weights=PACKAGED, block=3, precision="fp32")
    path = find_weights(chosen)
    assert path is not None
    whole = _filled(chosen, path).eval()
    photographs = torch.stack([torch.from_numpy(one[:, 106:533].copy()) for one in load_sample_images().images])
    squares = torch.nn.functional.interpolate(photographs.permute(0, 3, 1, 2).float(), (224, 224), mode="area")
    assert whole((squares - 127) / 128).argmax(1).tolist() == [698, 985]
    encoder = load_timm(chosen)
    features = encoder(squares.round().to(torch.uint8))
    expected = whole.forward_intermediates((squares.round() - 127) / 128, indices=[3], intermediates_only=True)[0]
    torch.testing.assert_close(features.float(), expected.flatten(2).transpose(1, 2).detach(), atol=2e-3, rtol=2e-3)


# What cannot be


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (options("vit_smal_patch16"), "timm has no network 'vit_smal_patch16'; close to it: vit_small"),
        (options("vit_tiny_patch16_224.openai"), "no 'vit_tiny_patch16_224.openai'; tags of .*: augreg_in21k"),
        (options("test_vit", block=40), "has no block 40 .*change encoder.block"),
        (options("test_vit", image_size=100), "no features on a grid for images of 100 pixels .*patch size"),
        (options("resnet50", image_size=110), "4 x 4 patches do not fill an image of 110 x 110 pixels"),
        (options("hiera_tiny_224"), "gives no features on a grid .*encoder.norm"),
        (options("./nowhere"), "nowhere has no config.json; expected a directory as timm saves a network"),
    ],
)
def test_what_timm_cannot_do_is_one_sentence_before_any_weights(chosen: EncoderOptions, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        outline_timm(chosen)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (options("test_vit", weights="nowhere.pth"), "encoder.weights: nowhere.pth is no file"),
        (options("test_vit", weights=PACKAGED), "the package has weights of tf_efficientnet_lite0, encoder.timm is"),
    ],
)
def test_weights_that_are_not_there_are_one_sentence(chosen: EncoderOptions, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_timm(chosen)


def test_weights_are_taken_whole_or_not_at_all(vit: Any, tmp_path: Path) -> None:
    state = vit.state_dict()
    for name, change in (("missing", {}), ("left_over", {"norm.weight": state["norm.weight"], "more": torch.ones(2)})):
        torch.save({**{key: value for key, value in state.items() if key != "norm.weight"}, **change}, tmp_path / name)
    with pytest.raises(ModelError, match=r'missing does not fit test_vit: .*Missing key.*"norm.weight"'):
        load_timm(options("test_vit", weights=str(tmp_path / "missing")))
    with pytest.raises(ModelError, match=r'left_over does not fit test_vit: .*Unexpected key.*"more"'):
        load_timm(options("test_vit", weights=str(tmp_path / "left_over")))
    with pytest.raises(ModelError, match=r"weights.pth does not fit test_convnext: .*choose the network it was made"):
        load_timm(options("test_convnext", weights=str(tmp_path / "weights.pth")))
