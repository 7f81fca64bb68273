"""Released checkpoints: their layout, imported strictly, against an independent computation of their network."""

import argparse
import math
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import ModelError
from models.vit.options import SHAPES, BackboneOptions
from models.weights.official_checkpoint import import_official_checkpoint
from tests.models.timm_files import images, in_timm, save


def official_shapes(width: int, *, classes: int, patch: int = 16, patches: int = 4) -> dict[str, list[int]]:
    """Return the 200 tensors of a `vit_standard_*` of the released code with average pooling, in its order."""
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
    """Return random weights under which every tensor moves the logits."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) / math.sqrt(shape[-1] if len(shape) == 2 else 4)
        for name, shape in official_shapes(192, classes=7, **options).items()
    }


def unfilled_state(width: int, **options: int) -> dict[str, Tensor]:
    """Return all zeros that take no place: torch writes the one number that all elements share."""
    return {name: torch.zeros(()).expand(shape) for name, shape in official_shapes(width, **options).items()}


def write_official(path: Path, state: dict[str, Tensor], **more: object) -> Path:
    arguments = argparse.Namespace(model="vit_standard_tiny_patch16_224", lr=5e-4, device=torch.device("cpu"), aa=None)
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-6, "params": [0]}]}
    checkpoint = {"epoch": 299, "arch": "vit_standard_tiny_patch16_224", "state_dict": state, "optimizer": optimizer}
    checkpoint |= {"version": 2, "args": arguments, "amp_scaler": {"scale": 65536.0}, "metric": 75.5}
    torch.save(checkpoint | more, path)
    return path


def official_logits(state: dict[str, Tensor], pixels: Tensor, *, heads: int) -> Tensor:
    """Return the released classifier in evaluation, head by head, with queries apart from keys and values."""

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


def test_the_pixels_that_a_classifier_was_trained_on_are_those_that_its_file_names(tmp_path: Path):
    told = argparse.Namespace(mean=[0.5, 0.5, 0.5], std=None, interpolation="random")
    for arguments, seen in ((told, {"mean": (0.5, 0.5, 0.5)}), (argparse.Namespace(mean=None), {})):
        path = write_official(tmp_path / "released.tar", official_state(), args=arguments)
        assert import_official_checkpoint(path).seen == seen


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
    with pytest.raises(ModelError, match="not plain tensors"):
        import_official_checkpoint(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Touch(trace)))  # the trap does work where pickles are trusted
    assert trace.exists()


def test_a_missing_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"none\.tar: not a readable checkpoint"):
        import_official_checkpoint(tmp_path / "none.tar")
