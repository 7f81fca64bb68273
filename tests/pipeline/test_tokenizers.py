"""Builds with every tokenizer, on real photographs: one door, one kind of token store, one report."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.encoders.options import RawPatchOptions
from models.encoders.raw_patches import RawPatchEncoder
from models.errors import ModelError
from models.tokenizers.base import Tokenizer
from models.tokenizers.dalle import load_dalle
from models.tokenizers.dalle_options import DalleOptions
from models.tokenizers.vqkd import load_vqkd
from models.vqkd.options import VQKDOptions
from pipeline.chains.graph import FlowResult
from pipeline.configuration.config import PretrainConfig
from pipeline.configuration.overrides import apply_overrides
from pipeline.data.decode import read_and_decode
from pipeline.data.sources.kinds import open_source
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from storage.codebook_file import read_codebook
from storage.image_index import ImageIndex
from storage.token_store import TokenStore
from tests.builds import build, make_photos, small_config, tokens_of
from tests.models.dalle_files import published_shapes
from tests.stages import pretrain_on_tokens
from tests.tiny_vqkd import write_tiny_vqkd
from tests.trainings import SMALL

TOKENIZERS = ("vqkd", "dalle", "pixels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, and checkpoints with the published layouts."""
    folder = tmp_path_factory.mktemp("tokenizers")
    make_photos(folder / "photos", train=12, val=3)
    write_tiny_vqkd(folder / "vqkd.pth")
    write_dalle(folder / "dalle.safetensors")
    return folder


def write_dalle(path: Path) -> None:
    """Write the published encoder's tensors in size and name, with weights under which the logits depend on the
    image."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in published_shapes().items():
        drawn = torch.randn(shape, generator=generator)
        state[name] = 0.3 * drawn if len(shape) == 1 else drawn * (2 / drawn[0].numel()) ** 0.5
    save_file(state, path)


def options_of(folder: Path, tokenizer: str) -> list[str]:
    return {
        "vqkd": ["tokenizer=vqkd", f"vqkd.checkpoint={folder}/vqkd.pth", "vqkd.image_size=24"],
        "dalle": ["tokenizer=dalle", f"dalle.checkpoint={folder}/dalle.safetensors", "dalle.image_size=32"],
        "pixels": ["tokenizer=pixels", "pixels.image_size=64", "pixels.patch_size=16"],
    }[tokenizer]


@pytest.fixture(scope="module")
def built(folder: Path) -> dict[str, FlowResult]:
    return {name: run(folder, *options_of(folder, name)) for name in TOKENIZERS}


def run(folder: Path, *overrides: str, root: str = "root") -> FlowResult:
    return build(small_config(folder / "photos", folder / "clip", *overrides), folder / root)


def tokenizer_alone(folder: Path, name: str) -> Tokenizer:
    if name == "vqkd":
        return load_vqkd(VQKDOptions(checkpoint=str(folder / "vqkd.pth"), image_size=24))
    return load_dalle(DalleOptions(checkpoint=str(folder / "dalle.safetensors"), image_size=32))


def squares(folder: Path, made: FlowResult, tokenizer: Tokenizer | RawPatchEncoder) -> torch.Tensor:
    """Return every image of the index as the tokenizer wants it, one by one."""
    index = ImageIndex.read(made["index_images"].artifact.path)
    reader = open_source(small_config(folder / "photos", folder / "clip").images).reader()
    rows = np.arange(len(index))
    decoded = [
        read_and_decode(reader, entry, tokenizer.preprocessing, preset="exact", max_pixels=1 << 20).pixels
        for entry in index.entries(rows)
    ]
    return torch.from_numpy(np.stack([pixels for pixels in decoded if pixels is not None]))


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("vqkd", ["index_images", "tokenize_images", "report"]),
        ("dalle", ["index_images", "tokenize_images", "report"]),
        ("pixels", ["index_images", "extract_features", "fit_codebook", "tokenize_images", "report"]),
    ],
)
def test_a_build_runs_the_stages_that_its_tokenizer_needs(
    name: str, stages: list[str], built: dict[str, FlowResult]
) -> None:
    assert [result.stage for result in built[name].results] == stages


@pytest.mark.parametrize("name", ["vqkd", "dalle"])
def test_tokens_are_those_of_the_tokenizer_alone_on_each_image(
    name: str, built: dict[str, FlowResult], folder: Path
) -> None:
    tokenizer = tokenizer_alone(folder, name)
    alone = torch.cat([tokenizer(image[None]) for image in squares(folder, built[name], tokenizer)])
    np.testing.assert_array_equal(tokens_of(built[name]), alone.numpy())
    assert len(np.unique(alone)) > 10, "images that all look the same to it would prove nothing"


def test_tokens_of_raw_patches_are_their_nearest_centroids(built: dict[str, FlowResult], folder: Path) -> None:
    encoder = RawPatchEncoder(RawPatchOptions(image_size=64, patch_size=16))
    features = encoder(squares(folder, built["pixels"], encoder)).double()
    centroids = torch.from_numpy(read_codebook(built["pixels"]["fit_codebook"].artifact.path).centroids).double()
    nearest = torch.cdist(features, centroids[None]).argmin(2)
    np.testing.assert_array_equal(tokens_of(built["pixels"]), nearest.numpy())


@pytest.mark.parametrize(
    ("name", "grid", "vocabulary", "side"),
    [("vqkd", [3, 3], 60, 24), ("dalle", [4, 4], 8192, 32), ("pixels", [4, 4], 32, 64)],
)
def test_a_store_says_what_made_it(
    name: str, grid: list[int], vocabulary: int, side: int, built: dict[str, FlowResult]
) -> None:
    attributes = TokenStore(built[name]["tokenize_images"].artifact.path).attributes
    assert (attributes["tokenizer"], attributes["grid"], attributes["vocabulary"]) == (name, grid, vocabulary)
    assert attributes["encoder"]["image_size"] == side
    assert ("codebook" in attributes) == (name == "pixels")
    assert ("tokenizer_weights" in attributes) == (name != "pixels")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_second_build_finds_every_stage(name: str, built: dict[str, FlowResult], folder: Path) -> None:
    assert run(folder, *options_of(folder, name)).all_cached


@pytest.mark.parametrize(("name", "file"), [("vqkd", "vqkd.pth"), ("dalle", "dalle.safetensors")])
def test_the_path_of_a_checkpoint_is_not_part_of_the_fingerprint(
    name: str, file: str, built: dict[str, FlowResult], folder: Path, tmp_path: Path
) -> None:
    shutil.copy(folder / file, tmp_path / file)
    again = run(folder, *options_of(folder, name), f"{name}.checkpoint={tmp_path / file}")
    assert again.all_cached


def test_another_checkpoint_makes_other_tokens(built: dict[str, FlowResult], folder: Path, tmp_path: Path) -> None:
    other = run(folder, *options_of(folder, "vqkd"), f"vqkd.checkpoint={write_tiny_vqkd(tmp_path / 'o.pth', seed=1)}")
    assert other["index_images"].cached
    assert other["tokenize_images"].artifact.digest != built["vqkd"]["tokenize_images"].artifact.digest


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_build_has_a_report_that_names_its_tokenizer(name: str, built: dict[str, FlowResult]) -> None:
    titles = {"vqkd": "VQ-KD", "dalle": "DALL-E", "pixels": "raw patches"}
    page = (built[name]["report"].artifact.path / "report.md").read_text()
    assert titles[name] in page
    assert "k-CLIP" not in page.partition("\n## ")[0], "it is none"


def test_a_truncated_checkpoint_stops_the_build_before_anything_is_published(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "vqkd.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    options = [*options_of(folder, "vqkd"), f"vqkd.checkpoint={tmp_path / 'cut.pth'}"]
    with pytest.raises(ModelError, match=r"cut\.pth"):
        build(small_config(folder / "photos", folder / "clip", *options), tmp_path / "root")
    assert not (tmp_path / "root" / "tokenize_images").exists()


def test_a_checkpoint_with_a_renamed_tensor_is_refused_by_its_names(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "dalle.safetensors")
    state["blocks.group_1.block_1.res_path.conv_9.w"] = state.pop("blocks.group_1.block_1.res_path.conv_1.w")
    save_file(state, tmp_path / "renamed.safetensors")
    options = [*options_of(folder, "dalle"), f"dalle.checkpoint={tmp_path / 'renamed.safetensors'}"]
    with pytest.raises(ModelError, match=r"missing.*conv_1\.w.*unexpected.*conv_9\.w"):
        run(folder, *options)


def test_a_backbone_learns_the_tokens_of_any_tokenizer(built: dict[str, FlowResult], folder: Path) -> None:
    small = [*SMALL, "backbone.image_size=48", "training.epochs=1", "training.warmup_epochs=0"]
    cut = ["objectives.mapet.cutting_point=4", f"images.path={folder / 'photos'}", "images.images_per_shard=14"]
    config = apply_overrides(PretrainConfig(), [*small, *cut, *options_of(folder, "vqkd")])
    made = pretrain_on_tokens(config, Workspace(Settings(data_root=folder / "root", device="cpu", workers=0)))
    assert made["tokenize_images"].cached
    learned = made["pretrain"].artifact
    assert learned.recipe.inputs["tokens"] == built["vqkd"]["tokenize_images"].artifact.digest
    assert "VQ-KD" in (made["report"].artifact.path / "report.md").read_text()
