"""Every encoder, and a whole build, on the device and on the CPU."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.clip.encoder import load_clip
from models.clip.options import ClipOptions
from models.encoders.base import PatchEncoder
from models.encoders.options import RawPatchOptions
from models.encoders.raw_patches import RawPatchEncoder
from models.tokenizers.base import Tokenizer
from models.tokenizers.dalle import load_dalle
from models.tokenizers.dalle_options import DalleOptions
from models.tokenizers.vqkd import load_vqkd
from models.vqkd.options import VQKDOptions
from pipeline.chains.graph import FlowResult
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from storage.codebook_file import read_codebook
from tests.builds import make_photos, small_config, tokens_of
from tests.models.dalle_files import SMALL, small_state, write
from tests.models.vit_clips import write_vit_clip
from tests.stages import kclip_build
from tests.tiny_clip import write_tiny_clip
from tests.tiny_vqkd import write_tiny_vqkd

Load = Callable[[Path, str, str], PatchEncoder]


def images(count: int, size: int) -> Tensor:
    """Smooth pictures, uint8 [count, 3, size, size]: patches that differ from each other."""
    coarse = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    return (255 * F.interpolate(coarse, size=(size, size), mode="bilinear")).to(torch.uint8)


def clip_resnet(folder: Path, device: str, precision: str) -> PatchEncoder:
    return load_clip(ClipOptions(model=write_tiny_clip(folder, width=8), precision=precision), device=device)


def dilated_clip_resnet(folder: Path, device: str, precision: str) -> PatchEncoder:
    options = ClipOptions(model=write_tiny_clip(folder, width=8), precision=precision, dilate_last_stage=True)
    return load_clip(options, device=device)


def clip_vit(folder: Path, device: str, precision: str) -> PatchEncoder:
    return load_clip(ClipOptions(model=write_vit_clip(folder), precision=precision), device=device)


def raw_patches(folder: Path, device: str, precision: str) -> PatchEncoder:
    return RawPatchEncoder(RawPatchOptions(image_size=64, patch_size=16)).to(device)


CLIPS = pytest.mark.parametrize("load", [clip_resnet, dilated_clip_resnet, clip_vit])


@pytest.mark.parametrize("load", [clip_resnet, dilated_clip_resnet, clip_vit, raw_patches])
def test_features_in_float32_are_those_of_the_cpu(load: Load, device: str, tmp_path: Path) -> None:
    expected = load(tmp_path / "cpu", "cpu", "fp32")(images(6, 64)).float()
    found = load(tmp_path / "device", device, "fp32")(images(6, 64).to(device)).cpu().float()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-3 * expected.abs().max().item())


@CLIPS
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_features_in_half_precision_point_where_those_in_float32_do(
    load: Load, precision: str, device: str, tmp_path: Path
) -> None:
    expected = load(tmp_path / "cpu", "cpu", "fp32")(images(6, 64)).float()
    found = load(tmp_path / "device", device, precision)(images(6, 64).to(device)).cpu().float()
    assert F.cosine_similarity(found, expected, dim=-1).min() > (0.999 if precision == "fp16" else 0.99)


@CLIPS
def test_batches_of_one_size_give_an_image_the_same_bits(load: Load, device: str, tmp_path: Path) -> None:
    encoder, pictures = load(tmp_path, device, "fp16"), images(6, 64).to(device)
    assert torch.equal(encoder(pictures), encoder(pictures))
    assert torch.equal(encoder(pictures), encoder(pictures.roll(2, dims=0)).roll(-2, dims=0))


def test_a_compiled_encoder_gives_the_features_of_an_eager_one(device: str, tmp_path: Path) -> None:
    options = ClipOptions(model=write_tiny_clip(tmp_path), precision="fp32")
    eager, compiled = (load_clip(options, device=device, compile_trunk=compile) for compile in (False, True))
    expected, found = eager(images(4, 64).to(device)).float(), compiled(images(4, 64).to(device)).float()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-3 * expected.abs().max().item())


def dalle(folder: Path, device: str) -> Tokenizer:
    folder.mkdir()
    options = DalleOptions(checkpoint=write(folder / "encoder.safetensors", small_state()), image_size=32)
    return load_dalle(options, device=device, shape=SMALL)


def vqkd(folder: Path, device: str) -> Tokenizer:
    folder.mkdir()
    path = write_tiny_vqkd(folder / "vqkd.pth")
    return load_vqkd(VQKDOptions(checkpoint=path, image_size=24, precision="fp32"), device=device)


@pytest.mark.parametrize("load", [dalle, vqkd])
def test_tokens_of_networks_are_those_of_the_cpu(
    load: Callable[[Path, str], Tokenizer], device: str, tmp_path: Path
) -> None:
    on_cpu, on_device = load(tmp_path / "cpu", "cpu"), load(tmp_path / "device", device)
    pictures = images(40, on_cpu.preprocessing.image_size)
    expected, found = on_cpu(pictures), on_device(pictures.to(device)).cpu()
    assert len(expected.unique()) > 5
    # A code that is as near as another one to the last bits may turn; none of these few hundred should.
    assert (found == expected).float().mean() > 0.99


def test_a_vqkd_in_half_precision_mostly_chooses_the_same_codes(device: str, tmp_path: Path) -> None:
    path, pictures = write_tiny_vqkd(tmp_path / "vqkd.pth"), images(40, 24)
    options = VQKDOptions(checkpoint=path, image_size=24, precision="fp32")
    expected = load_vqkd(options, device="cpu")(pictures)
    for precision in ("fp16", "bf16"):
        half = load_vqkd(options.model_copy(update={"precision": precision}), device=device)
        assert (half(pictures.to(device)).cpu() == expected).float().mean() > 0.9


def build(photos: Path, clip: Path, root: Path, device: str, **settings: int) -> FlowResult:
    machine = Settings(**{"data_root": root, "device": device, "workers": 0, "batch_size": 4, **settings})
    return kclip_build(small_config(photos, clip), Workspace(machine))


def test_a_build_gives_the_tokens_of_the_cpu_and_twice_the_same(device: str, tmp_path: Path) -> None:
    """Features, k-means and tokens, from photographs; the second time with workers and other batches."""
    pytest.importorskip("faiss")
    photos, clip = make_photos(tmp_path / "photos"), tmp_path / "clip"
    on_cpu = build(photos, clip, tmp_path / "cpu", "cpu")
    first = build(photos, clip, tmp_path / "first", device)
    again = build(photos, clip, tmp_path / "again", device, workers=2)
    expected, found = (read_codebook(made["fit_codebook"].artifact.path).centroids for made in (on_cpu, first))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05 * np.abs(expected).max())
    assert (tokens_of(first) == tokens_of(on_cpu)).mean() > 0.98
    for stage in ("extract_features", "fit_codebook", "tokenize_images"):
        assert again[stage].artifact.digest == first[stage].artifact.digest, stage
