"""Patch features of a CLIP Vision Transformer against the arithmetic written out, and what such a tower refuses."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.clip.encoder import load_clip, load_whole_clip, outline_clip
from models.clip.options import ClipOptions
from models.clip.vit import ClipViTPatchEncoder
from models.clip.zero_shot import ZeroShotClassifier
from models.errors import ModelError
from tests.models.vit_clips import (
    EMBEDDING,
    HEADS,
    PATCH,
    SIZE,
    WIDTH,
    quick_gelu,
    vit_clip,
    vit_config,
    write_vit_clip,
)
from tests.tiny_clip import MEAN, STD


@pytest.fixture
def tiny(tmp_path: Path) -> ClipOptions:
    return ClipOptions(model=write_vit_clip(tmp_path / "clip"), precision="fp32")


def weights_of(options: ClipOptions) -> Path:
    return Path(options.model.removeprefix("local-dir:")) / "open_clip_model.safetensors"


def changed(options: ClipOptions, **update: Any) -> ClipOptions:
    return options.model_copy(update=update)


def random_images(count: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def written_out(state: Mapping[str, Tensor], images: Tensor, activation: Any = F.gelu) -> Tensor:
    """Return features in float64 by the formulas of the paper alone: [B, N, EMBEDDING]."""
    weights = {name.removeprefix("visual."): tensor.double() for name, tensor in state.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(x: Tensor, name: str) -> Tensor:
        mixed = x @ weights[f"{name}.in_proj_weight"].T + weights[f"{name}.in_proj_bias"]
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in mixed.chunk(3, dim=-1))
        shares = (query @ key.transpose(-1, -2) / (WIDTH / HEADS) ** 0.5).softmax(-1)
        joined = (shares @ value).transpose(1, 2).flatten(2)
        return joined @ weights[f"{name}.out_proj.weight"].T + weights[f"{name}.out_proj.bias"]

    pixels = (images.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    patches = F.conv2d(pixels, weights["conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    tokens = torch.cat([weights["class_embedding"].expand(len(images), 1, -1), patches], dim=1)
    tokens = norm(tokens + weights["positional_embedding"], "ln_pre")
    for block in ("transformer.resblocks.0", "transformer.resblocks.1"):
        tokens = tokens + attention(norm(tokens, f"{block}.ln_1"), f"{block}.attn")
        hidden = norm(tokens, f"{block}.ln_2") @ weights[f"{block}.mlp.c_fc.weight"].T
        hidden = activation(hidden + weights[f"{block}.mlp.c_fc.bias"])
        tokens = tokens + hidden @ weights[f"{block}.mlp.c_proj.weight"].T + weights[f"{block}.mlp.c_proj.bias"]
    return norm(tokens, "ln_post")[:, 1:] @ weights["proj"]


def relative_distance(features: Tensor, expected: Tensor) -> float:
    return float((features.double() - expected).norm() / expected.norm())


# Features


@pytest.mark.parametrize(("quick", "activation"), [(False, F.gelu), (True, quick_gelu)])
def test_features_are_the_projected_patch_tokens_after_the_last_norm(
    tmp_path: Path, quick: bool, activation: Any
) -> None:
    options = ClipOptions(model=write_vit_clip(tmp_path, quick_gelu=quick), precision="fp32")
    encoder, images = load_clip(options), random_images(3)
    features, expected = encoder(images), written_out(load_file(weights_of(options)), images, activation)
    assert isinstance(encoder, ClipViTPatchEncoder)
    assert (features.dtype, features.shape) == (torch.float16, (3, 16, EMBEDDING))
    assert (encoder.grid, encoder.width) == ((4, 4), EMBEDDING)
    assert relative_distance(features, expected) < 1e-3


def test_the_activation_that_weights_were_trained_with_changes_features_and_digest(tmp_path: Path) -> None:
    exact, quick = (
        load_clip(ClipOptions(model=write_vit_clip(tmp_path / str(quick), quick_gelu=quick), precision="fp32"))
        for quick in (False, True)
    )
    images = random_images(2)
    assert relative_distance(quick(images), exact(images).double()) > 2e-3
    assert quick.digest != exact.digest


def test_a_tag_trained_with_quick_gelu_overrules_the_models_name(tiny: ClipOptions) -> None:
    path = weights_of(tiny).with_name("open_clip_config.json")
    config = json.loads(path.read_text())
    config["preprocess_cfg"]["quick_gelu"] = True
    path.write_text(json.dumps(config))
    images = random_images(2)
    expected = written_out(load_file(weights_of(tiny)), images, quick_gelu)
    assert relative_distance(load_clip(tiny)(images), expected) < 1e-3


def named(name: str, folder: Path, config: Mapping[str, Any]) -> str:
    """Return an architecture that open_clip knows by this name from now on."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return name


def test_weights_by_path_are_seen_as_the_configuration_beside_them_says(tmp_path: Path) -> None:
    local = ClipOptions(model=write_vit_clip(tmp_path / "clip", quick_gelu=True), precision="fp32")
    model = named("vit-told", tmp_path / "names", vit_config())
    by_path = load_clip(ClipOptions(model=model, pretrained=str(weights_of(local)), precision="fp32"))
    images, expected = random_images(2), load_clip(local)
    assert by_path.preprocessing == expected.preprocessing
    assert by_path.preprocessing.mean == MEAN
    assert torch.equal(by_path(images), expected(images))
    assert by_path.digest == expected.digest
    assert outline_clip(ClipOptions(model=model, pretrained=str(weights_of(local)))).preprocessing.mean == MEAN
    shutil.copy(weights_of(local), tmp_path / "alone.safetensors")
    alone = load_clip(ClipOptions(model=model, pretrained=str(tmp_path / "alone.safetensors"), precision="fp32"))
    assert alone.preprocessing.mean == open_clip.OPENAI_DATASET_MEAN
    assert alone.digest != expected.digest, "without a word about it the name's activation counts"


def test_a_name_that_promises_quick_gelu_is_overruled_and_told(
    tiny: ClipOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = named("vit-told-quickgelu", tmp_path / "names", vit_config() | {"quick_gelu": True})
    by_path = load_clip(ClipOptions(model=model, pretrained=str(weights_of(tiny)), precision="fp32"))
    assert by_path.digest == load_clip(tiny).digest
    assert "run without quick_gelu, which vit-told-quickgelu has in its name" in caplog.text


@pytest.mark.parametrize(
    ("vision", "difference"),
    [({"head_width": 16}, "head_width 32"), ({"norm_kwargs": {"eps": 1e-3}}, "norm_kwargs None")],
)
def test_a_name_of_another_network_than_the_weights_tell_of_is_refused(
    vision: dict[str, Any], difference: str, tiny: ClipOptions, tmp_path: Path
) -> None:
    """Though every tensor fits."""
    model = named(f"vit-{difference.split()[0]}", tmp_path / "names", vit_config(**vision))
    expected = (
        rf"open_clip_config\.json: the weights beside it have vision_cfg\.{difference}.*clip\.model to local-dir:"
    )
    with pytest.raises(ModelError, match=expected):
        load_clip(ClipOptions(model=model, pretrained=str(weights_of(tiny)), precision="fp32"))


@pytest.mark.parametrize(
    "vision", [{"ls_init_value": 0.1}, {"no_ln_pre": True}, {"pool_type": "avg", "final_ln_after_pool": True}, {}]
)
@torch.no_grad()
def test_the_class_token_treated_alike_is_open_clips_own_image_feature(tmp_path: Path, vision: dict[str, Any]) -> None:
    """Whatever the variant, the encoder's tower must be the one that open_clip runs."""
    options = ClipOptions(model=write_vit_clip(tmp_path, **vision), precision="fp32")
    encoder, model = load_clip(options), open_clip.create_model(options.model).eval().requires_grad_(False)
    assert isinstance(encoder, ClipViTPatchEncoder)
    pixels = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder.tower(pixels), model.encode_image(pixels))


def test_an_image_has_the_same_features_wherever_it_stands_in_a_batch(tiny: ClipOptions) -> None:
    encoder, images = load_clip(tiny), random_images(6)
    features = encoder(images)
    order = [3, 5, 0, 1, 4, 2]
    assert torch.equal(encoder(images[order]), features[order])
    assert torch.equal(encoder(torch.cat([images[:1], random_images(5, seed=1)]))[0], features[0])


def test_bf16_computes_in_bf16_and_fp16_on_a_cpu_in_fp32(tiny: ClipOptions) -> None:
    images = random_images(2)
    fp32, fp16, bf16 = (load_clip(changed(tiny, precision=name))(images) for name in ("fp32", "fp16", "bf16"))
    assert torch.equal(fp16, fp32)
    assert 1e-4 < relative_distance(bf16, fp32.double()) < 0.05


def test_the_encoder_stays_frozen(tiny: ClipOptions) -> None:
    encoder = load_clip(tiny)
    nn.Sequential(encoder).train()
    assert not any(weight.requires_grad for weight in encoder.parameters())
    assert not any(module.training for module in encoder.modules())


def test_images_of_another_size_are_refused(tiny: ClipOptions) -> None:
    with pytest.raises(ModelError, match=r"came torch.uint8 \[2, 3, 32, 32\], expected torch.uint8 \[B, 3, 64, 64\]"):
        load_clip(tiny)(random_images(2)[:, :, :32, :32])


# Outline


def test_the_outline_of_vit_b_16_has_14_by_14_patches_of_512_numbers_and_no_digest() -> None:
    encoder = outline_clip(ClipOptions(model="ViT-B-16"))
    features = encoder(torch.empty(1, 3, 224, 224, dtype=torch.uint8, device="meta"))
    assert (features.shape, encoder.grid, encoder.width, encoder.digest) == ((1, 196, 512), (14, 14), 512, "")
    assert (encoder.preprocessing.image_size, encoder.preprocessing.mean) == (224, open_clip.OPENAI_DATASET_MEAN)
    assert all(tensor.is_meta for tensor in [*encoder.parameters(), *encoder.buffers()])


# Weights


def test_the_digest_is_of_the_image_towers_values_and_not_of_the_file(tiny: ClipOptions, tmp_path: Path) -> None:
    state = load_file(weights_of(tiny))
    visual = {name: tensor for name, tensor in state.items() if name.startswith("visual.")}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in visual.items()}}, tmp_path / "visual.pt")
    elsewhere = ClipOptions(model=write_vit_clip(tmp_path / "elsewhere"), precision="fp32")
    same = [load_clip(changed(tiny, pretrained=str(tmp_path / "visual.pt"))), load_clip(elsewhere)]
    assert {encoder.digest for encoder in same} == {load_clip(tiny).digest}


def test_one_weight_or_the_number_of_heads_changes_the_digest(tiny: ClipOptions, tmp_path: Path) -> None:
    state = load_file(weights_of(tiny))
    state["visual.proj"][0, 0] += 1e-3
    save_file(state, tmp_path / "other.safetensors")
    other = load_clip(changed(tiny, pretrained=str(tmp_path / "other.safetensors")))
    heads = load_clip(ClipOptions(model=write_vit_clip(tmp_path / "heads", head_width=16), precision="fp32"))
    assert len({load_clip(tiny).digest, other.digest, heads.digest}) == 3


def test_random_weights_are_the_same_every_time_and_leave_the_global_seed_alone(tiny: ClipOptions) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    encoder = load_clip(changed(tiny, pretrained=""))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert load_clip(changed(tiny, pretrained="")).digest == encoder.digest != load_clip(tiny).digest
    features = encoder(random_images(2)).float()
    assert torch.isfinite(features).all()
    assert (features[0] - features[1]).std() > 0.1


def test_random_weights_of_a_published_architecture_give_finite_features() -> None:
    encoder = load_clip(ClipOptions(model="ViT-S-32", pretrained=""))
    features = encoder(torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)).float()
    assert torch.isfinite(features).all()
    assert 0.1 < features.std() < 10


def test_tensors_that_do_not_fit_are_named(tiny: ClipOptions, tmp_path: Path) -> None:
    state = load_file(weights_of(tiny))
    del state["visual.conv1.weight"], state["text_projection"]  # the text tower is nobody's business here
    state["visual.ln_final.weight"] = torch.zeros(1)
    state["visual.positional_embedding"] = torch.zeros(5, WIDTH)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(ModelError) as raised:
        load_clip(changed(tiny, pretrained=str(tmp_path / "odd.safetensors")))
    for part in (
        "missing: visual.conv1.weight;",
        "unexpected: visual.ln_final.weight;",
        "of another shape: visual.positional_embedding ([5, 64] instead of [17, 64])",
    ):
        assert part in str(raised.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:FutureWarning")
def test_openais_torchscript_archive_is_read_and_runs_with_quick_gelu(tmp_path: Path) -> None:
    class Archive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    directory = write_vit_clip(tmp_path / "clip", head_width=64)
    model, archive, path = vit_clip(vit_config(head_width=64)).half(), Archive(), tmp_path / "ViT.pt"
    for name, child in model.named_children():
        archive.add_module(name, child)
    for name, weight in model.named_parameters(recurse=False):
        archive.register_parameter(name, weight)
    for name, value in {"input_resolution": SIZE, "context_length": 16, "vocab_size": 49408}.items():
        archive.register_buffer(name, torch.tensor(value))
    torch.jit.trace(archive, torch.zeros(1)).save(str(path))
    options = ClipOptions(model=directory, pretrained=str(path), precision="fp32")
    encoder = load_clip(options)
    assert isinstance(encoder, ClipViTPatchEncoder)
    for name, tensor in model.visual.state_dict().items():
        assert torch.equal(encoder.tower.state_dict()[name], tensor.float())
    for tower in (encoder.tower, load_whole_clip(options).model.visual):
        assert isinstance(tower.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)


# What is refused


def test_another_image_size_than_the_positions_are_for_is_refused(tiny: ClipOptions) -> None:
    assert outline_clip(changed(tiny, image_size=SIZE)).grid == (4, 4)
    with pytest.raises(ModelError, match=r"image_size is 128, expected 64: .* position for each of its patches"):
        load_clip(changed(tiny, image_size=128))


def test_a_dilated_last_stage_is_refused(tiny: ClipOptions) -> None:
    with pytest.raises(ModelError, match=r"no stage to dilate, .*; set dilate_last_stage=false"):
        outline_clip(changed(tiny, dilate_last_stage=True))


def test_patches_that_do_not_fill_the_image_are_refused(tmp_path: Path) -> None:
    options = ClipOptions(model=write_vit_clip(tmp_path, image_size=72))
    with pytest.raises(ModelError, match=r"patches of \(16, 16\) pixels do not fill an image of \(72, 72\)"):
        outline_clip(options)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"timm_model_name": "vit_none_at_all"}, "could not build its tower of timm, vit_none_at_all"),
        ({"attentional_pool": True}, "has an attentional pooler; patch features come from a ModifiedResNet"),
        ({"layers": "two"}, "has layers 'two'; .* from a plain Vision Transformer"),
        ({"pool_type": "middle"}, "configuration is none that open_clip could build a Vision Transformer from"),
        ({"depth": 2}, r"could build a Vision Transformer from \(TypeError: .*depth"),
    ],
)
def test_a_tower_of_another_kind_is_refused_with_the_kinds_there_are(
    tiny: ClipOptions, vision: dict[str, Any], message: str
) -> None:
    path = weights_of(tiny).with_name("open_clip_config.json")
    config = json.loads(path.read_text())
    config["model_cfg"] = vit_config(**vision)
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        load_clip(tiny)


# Both towers


@torch.no_grad()
def test_a_vision_transformer_judges_images_by_captions(tiny: ClipOptions) -> None:
    whole = load_whole_clip(tiny)
    images, names, templates = random_images(4), ["cat", "dog"], ["a photo of a {}"]
    similarity = ZeroShotClassifier(whole, names, templates, precision="fp32")(images)
    model = open_clip.create_model(tiny.model).eval()
    captions = open_clip.get_tokenizer(tiny.model)([templates[0].format(name) for name in names])
    pixels = (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    expected = model.encode_image(pixels, normalize=True) @ model.encode_text(captions, normalize=True).T
    torch.testing.assert_close(similarity, expected, rtol=1e-4, atol=1e-5)
    assert whole.preprocessing == load_clip(tiny).preprocessing
