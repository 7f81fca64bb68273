"""The CLIP patch encoder against open_clip itself, its weights' many forms, and its errors."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.clip.encoder import ClipPatchEncoder, clip_grid, load_clip, load_whole_clip, outline_clip
from models.clip.options import ClipOptions
from models.errors import ModelError
from tests.tiny_clip import MEAN, STD, tiny_clip, write_tiny_clip


@pytest.fixture
def tiny(tmp_path: Path) -> ClipOptions:
    return ClipOptions(model=write_tiny_clip(tmp_path / "clip"), precision="fp32")


def with_pretrained(options: ClipOptions, pretrained: object) -> ClipOptions:
    return options.model_copy(update={"pretrained": str(pretrained)})


def tiny_weights(options: ClipOptions) -> Path:
    return Path(options.model.removeprefix("local-dir:")) / "open_clip_model.safetensors"


def random_images(count: int, size: int = 64, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_importing_the_encoder_does_not_import_open_clip() -> None:
    code = "import sys, models.clip.encoder, models.tokenizers.kclip; sys.exit('open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_features_are_exactly_those_of_open_clips_own_path_from_the_photo_on(tiny: ClipOptions) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    model, _, preprocess = open_clip.create_model_and_transforms(tiny.model)
    with torch.no_grad():
        stages = model.eval().visual.forward_intermediates(
            preprocess(photo)[None], indices=[4], intermediates_only=True
        )
    expected = stages["image_intermediates"][0]
    cut = preprocess.transforms[1](preprocess.transforms[0](photo))
    features = load_clip(tiny)(torch.from_numpy(np.array(cut)).permute(2, 0, 1)[None])
    assert expected.std() > 0.01
    assert features.dtype == torch.float16
    assert torch.equal(features[0], expected[0].flatten(1).T.half())


def test_the_preprocessing_is_the_models_own(tiny: ClipOptions) -> None:
    preprocessing = load_clip(tiny).preprocessing
    assert (preprocessing.image_size, preprocessing.mean, preprocessing.std) == (64, MEAN, STD)
    openai = outline_clip(ClipOptions()).preprocessing
    assert (openai.image_size, openai.interpolation) == (448, "bicubic")
    assert (openai.mean, openai.std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def test_a_preprocessing_is_read_as_open_clip_reads_it(tiny: ClipOptions) -> None:
    path = tiny_weights(tiny).with_name("open_clip_config.json")
    config = json.loads(path.read_text())
    config["preprocess_cfg"] = {"mean": 0.5, "std": 0.25, "interpolation": "random"}
    path.write_text(json.dumps(config))
    transforms = open_clip.create_model_and_transforms(tiny.model)[2].transforms
    seen = outline_clip(tiny).preprocessing
    assert (seen.mean, seen.std) == (tuple(transforms[-1].mean), tuple(transforms[-1].std))
    assert seen.interpolation == transforms[0].interpolation.value


def test_rn50x64_at_448_pixels_gives_196_features_of_width_4096() -> None:
    encoder = outline_clip(ClipOptions())
    features = encoder(torch.empty(1, 3, 448, 448, dtype=torch.uint8, device="meta"))
    assert (features.shape, encoder.grid, encoder.width) == ((1, 196, 4096), (14, 14), 4096)
    assert sum(weight.numel() for weight in encoder.trunk.parameters()) == pytest.approx(365.0e6, abs=0.5e6)


def test_rn50_with_random_weights_gives_finite_features_at_448_pixels() -> None:
    encoder = load_clip(ClipOptions(model="RN50-quickgelu", pretrained="", image_size=448))
    features = encoder(random_images(1, 448))
    assert features.shape == (1, 196, 2048)
    assert torch.isfinite(features).all()
    assert features.float().std() > 0.1


def test_the_encoder_keeps_nothing_but_the_frozen_trunk(tiny: ClipOptions) -> None:
    encoder = load_clip(tiny)
    assert not any(weight.requires_grad for weight in encoder.parameters())
    assert not any("attnpool" in name for name in encoder.state_dict())
    nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())


def test_an_image_has_the_same_features_wherever_it_stands_in_a_batch(tiny: ClipOptions) -> None:
    encoder, images = load_clip(tiny), random_images(6)
    features = encoder(images)
    order = [3, 5, 0, 1, 4, 2]
    assert torch.equal(encoder(images[order]), features[order])
    assert torch.equal(encoder(torch.cat([images[:1], random_images(5, seed=1)]))[0], features[0])


def test_fp16_on_a_cpu_is_fp32_rounded_and_bf16_is_not(tiny: ClipOptions) -> None:
    images = random_images(2)
    fp32, fp16, bf16 = (
        load_clip(tiny.model_copy(update={"precision": precision}))(images) for precision in ("fp32", "fp16", "bf16")
    )
    assert torch.equal(fp16, fp32)
    assert not torch.equal(bf16, fp32)
    assert torch.allclose(bf16.float(), fp32.float(), atol=0.05 * fp32.abs().max().item())


def test_an_outer_autocast_does_not_reach_the_encoder(tiny: ClipOptions) -> None:
    encoder, images = load_clip(tiny), random_images(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = encoder(images)
    assert torch.equal(inside, encoder(images))


def test_images_of_another_size_are_refused(tiny: ClipOptions) -> None:
    with pytest.raises(ModelError, match=r"came torch.uint8 \[2, 3, 32, 32\], expected torch.uint8 \[B, 3, 64, 64\]"):
        load_clip(tiny)(random_images(2, 32))


# Dilation


def dilated_and_not(directory: Path, layers: tuple[int, ...]) -> tuple[ClipPatchEncoder, ClipPatchEncoder]:
    options = ClipOptions(model=write_tiny_clip(directory, layers=layers), precision="fp32")
    return load_clip(options.model_copy(update={"dilate_last_stage": True})), load_clip(options)


def test_dilation_doubles_the_grid(tmp_path: Path) -> None:
    dilated, plain = dilated_and_not(tmp_path, (1, 1, 1, 2))
    images = random_images(2)
    assert (dilated.grid, plain.grid) == ((4, 4), (2, 2))
    assert (dilated(images).shape, plain(images).shape) == ((2, 16, 128), (2, 4, 128))
    assert clip_grid(448, dilate=True) == (28, 28)


def test_each_patch_is_the_mean_of_the_four_dilated_ones_before_the_last_relu(tmp_path: Path) -> None:
    inputs: list[Tensor] = []
    for encoder in dilated_and_not(tmp_path, (1, 1, 1, 1)):
        encoder.trunk.layer4[0].act3.register_forward_pre_hook(lambda _, given: inputs.append(given[0].clone()))
        encoder(random_images(2))
    fine, coarse = inputs
    torch.testing.assert_close(nn.functional.avg_pool2d(fine, 2), coarse, rtol=1e-4, atol=1e-4)


def test_the_dilated_stage_at_even_positions_is_the_stage_with_a_plain_stride(tmp_path: Path) -> None:
    class EverySecond(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return maps[:, :, ::2, ::2]

    dilated, plain = dilated_and_not(tmp_path, (1, 1, 1, 3))
    first = plain.trunk.layer4[0]
    first.avgpool, first.downsample[0] = EverySecond(), EverySecond()
    maps = torch.randn(2, 64, 8, 8, generator=torch.Generator().manual_seed(0))
    fine, coarse = dilated.trunk.layer4(maps.clone()), plain.trunk.layer4(maps.clone())
    torch.testing.assert_close(fine[:, :, ::2, ::2], coarse, rtol=1e-4, atol=1e-4)


def test_an_image_size_that_patches_do_not_fill_is_refused() -> None:
    with pytest.raises(ModelError, match="multiple of 32"):
        outline_clip(ClipOptions(model="RN50-quickgelu", image_size=450))


# Digest


def test_the_digest_is_of_the_values_and_not_of_the_file(tiny: ClipOptions, tmp_path: Path) -> None:
    state = load_file(tiny_weights(tiny))
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "wrapped.pt")
    torch.save(state, tmp_path / "plain.pth")
    encoders = [load_clip(with_pretrained(tiny, name)) for name in (tmp_path / "wrapped.pt", tmp_path / "plain.pth")]
    elsewhere = load_clip(ClipOptions(model=write_tiny_clip(tmp_path / "elsewhere"), precision="fp32"))
    assert {encoder.digest for encoder in [*encoders, elsewhere]} == {load_clip(tiny).digest}


def test_of_several_files_of_weights_the_hubs_is_taken_or_one_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_tiny_clip(tmp_path / "clip")
    local = ClipOptions(model="local-dir:~/clip", precision="fp32")
    alone = load_clip(local).digest
    (tmp_path / "clip" / "open_clip_pytorch_model.bin").write_bytes(b"the same, as the hub has it twice")
    with caplog.at_level(logging.INFO, "models"):
        assert load_clip(local).digest == alone
    assert f"{tmp_path}/clip: taking open_clip_model.safetensors, not open_clip_pytorch_model.bin" in caplog.text
    (tmp_path / "clip" / "open_clip_model.safetensors").rename(tmp_path / "clip" / "epoch_1.safetensors")
    (tmp_path / "clip" / "open_clip_pytorch_model.bin").rename(tmp_path / "clip" / "epoch_2.bin")
    with pytest.raises(
        ModelError, match=r"found: epoch_1\.safetensors, epoch_2\.bin; choose one with clip\.pretrained="
    ):
        load_clip(local)
    assert (
        load_clip(local.model_copy(update={"pretrained": str(tmp_path / "clip/epoch_1.safetensors")})).digest == alone
    )


def test_one_weight_or_the_dilation_changes_the_digest(tiny: ClipOptions, tmp_path: Path) -> None:
    state = load_file(tiny_weights(tiny))
    state["visual.layer4.0.bn3.running_var"][5] += 1e-3
    save_file(state, tmp_path / "other.safetensors")
    other = load_clip(with_pretrained(tiny, tmp_path / "other.safetensors"))
    dilated = load_clip(tiny.model_copy(update={"dilate_last_stage": True}))
    assert len({load_clip(tiny).digest, other.digest, dilated.digest}) == 3


def test_random_weights_are_the_same_every_time_and_leave_the_global_seed_alone(tiny: ClipOptions) -> None:
    torch.manual_seed(1)
    first = load_clip(with_pretrained(tiny, ""))
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert load_clip(with_pretrained(tiny, "")).digest == first.digest != load_clip(tiny).digest


# Weights


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:FutureWarning")
def test_openais_torchscript_archive_is_read(tmp_path: Path) -> None:
    class Archive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model, archive, path = tiny_clip().half(), Archive(), tmp_path / "RN.pt"
    for name, child in model.named_children():
        archive.add_module(name, child)
    for name, weight in model.named_parameters(recurse=False):
        archive.register_parameter(name, weight)
    for name, value in {"input_resolution": 64, "context_length": 8, "vocab_size": 64}.items():
        archive.register_buffer(name, torch.tensor(value))
    torch.jit.trace(archive, torch.zeros(1)).save(str(path))
    tiny = ClipOptions(model=write_tiny_clip(tmp_path / "clip"), pretrained=str(path), precision="fp32")
    trunk = load_clip(tiny).trunk
    for name, tensor in model.visual.layer4.state_dict().items():
        assert torch.equal(trunk.layer4.state_dict()[name], tensor.float()) or name.endswith("batches_tracked")
    assert trunk.conv1.weight.dtype == torch.float32
    whole = load_whole_clip(tiny).model
    for name, tensor in model.state_dict().items():
        assert torch.equal(whole.state_dict()[name], tensor.float()) or name.endswith("batches_tracked")
    # OpenAI trained with quick GELU, whatever the name of the model says.
    assert isinstance(whole.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)


# Both towers


@torch.no_grad()
def test_both_towers_are_those_that_open_clip_loads_whatever_the_patches_are(tiny: ClipOptions) -> None:
    whole = load_whole_clip(tiny.model_copy(update={"image_size": 128, "dilate_last_stage": True}))
    model = open_clip.create_model(tiny.model).eval().requires_grad_(False)  # or attention takes another path
    texts = torch.randint(0, 64, (3, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole.model.encode_text(texts), model.encode_text(texts))
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole.model.encode_image(pixels), model.encode_image(pixels))
    assert (whole.preprocessing, whole.digest) == (load_clip(tiny).preprocessing, load_whole_clip(tiny).digest)
    assert not any(weight.requires_grad for weight in whole.model.parameters())


def test_loading_both_towers_leaves_the_global_seed_alone(tiny: ClipOptions) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    load_whole_clip(tiny)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_configuration_without_a_text_tower_is_an_error(tiny: ClipOptions) -> None:
    path = tiny_weights(tiny).with_name("open_clip_config.json")
    config = json.loads(path.read_text())
    del config["model_cfg"]["text_cfg"]
    path.write_text(json.dumps(config))
    assert load_clip(tiny).width == 128
    with pytest.raises(ModelError, match="has no text tower"):
        load_whole_clip(tiny)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_checkpoint_is_an_error_with_its_path(tiny: ClipOptions, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    save = torch.save if suffix == ".pt" else save_file
    save(load_file(tiny_weights(tiny)), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=f"cut{suffix}: not a readable checkpoint"):
        load_clip(with_pretrained(tiny, path))


def test_a_pickle_that_needs_code_is_not_run(tiny: ClipOptions, tmp_path: Path) -> None:
    torch.save({"model": tiny_clip()}, tmp_path / "code.pt")
    with pytest.raises(ModelError, match="not plain tensors"):
        load_clip(with_pretrained(tiny, tmp_path / "code.pt"))


def test_a_training_checkpoint_without_a_state_dict_is_an_error(tiny: ClipOptions, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {}}, tmp_path / "epoch.pt")
    with pytest.raises(ModelError, match=r"expected tensors by name .*epoch, model"):
        load_clip(with_pretrained(tiny, tmp_path / "epoch.pt"))


def test_keys_that_do_not_fit_are_named(tiny: ClipOptions, tmp_path: Path) -> None:
    state = load_file(tiny_weights(tiny))
    del state["visual.conv1.weight"]
    state["visual.layer5.weight"] = torch.zeros(1)
    state["visual.bn1.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(ModelError) as raised:
        load_clip(with_pretrained(tiny, tmp_path / "odd.safetensors"))
    for part in (
        "missing: visual.conv1.weight",
        "unexpected: visual.layer5.weight",
        "of another shape: visual.bn1.bias ([7] instead of [2])",
    ):
        assert part in str(raised.value)


def test_a_checkpoint_of_another_architecture_names_a_few_keys_and_counts_the_rest(tiny: ClipOptions) -> None:
    with pytest.raises(ModelError, match=r"missing: visual.layer1.1.conv1.weight.* and \d+ more"):
        load_clip(ClipOptions(model="RN50-quickgelu", pretrained=str(tiny_weights(tiny))))


# Names


def test_a_misspelt_model_brings_close_matches() -> None:
    with pytest.raises(ModelError, match=r"no model 'RN50x64_quickgelu'; close to it: RN50x64-quickgelu"):
        load_clip(ClipOptions(model="RN50x64_quickgelu"))


def test_an_unknown_tag_brings_the_tags_there_are() -> None:
    with pytest.raises(ModelError, match=r"neither a file nor a tag of open_clip \(tags: openai, yfcc15m, cc12m\)"):
        load_clip(ClipOptions(model="RN50-quickgelu", pretrained="laion"))


def test_without_a_connection_the_error_says_which_file_to_bring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"could not be fetched .*RN50\.pt or https.*clip\.pretrained to the path"):
        load_clip(ClipOptions(model="RN50-quickgelu"))


def test_a_local_directory_without_configuration_or_with_two_weights_is_an_error(
    tiny: ClipOptions, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"open_clip_config\.json: expected open_clip's configuration"):
        load_clip(ClipOptions(model=f"local-dir:{tmp_path}"))
    tiny_weights(tiny).with_name("second.pt").touch()
    with pytest.raises(ModelError, match=r"expected one file of weights.*open_clip_model\.safetensors, second\.pt"):
        load_clip(tiny)
