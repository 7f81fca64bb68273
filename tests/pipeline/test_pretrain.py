"""The stage `pretrain`: images joined to tokens, all objectives, what is cached, refused, tracked and written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from models.errors import ModelError
from models.objectives import OBJECTIVES
from models.weights.timm_files import load_backbone
from pipeline.commands.export import export_weights
from pipeline.configuration.config import PretrainConfig
from pipeline.data.share import Share
from pipeline.data.sources.kinds import open_source
from pipeline.data.token_images import TokenImages
from pipeline.data.token_rows import choose_rows, open_tokens
from pipeline.engine.errors import PipelineError
from pipeline.engine.mlflow_tracker import mlflow_run, tracking_uri
from pipeline.engine.settings import Settings
from pipeline.stages.pretrain import pretraining_definition
from pipeline.stages.tokenize_images import GivenTokens
from pipeline.training.history import read_history
from pipeline.training.pretraining_options import PretrainOptions
from pipeline.training.token_prediction import pretraining_square
from storage.errors import ArtifactDamaged, ArtifactMissing, StoreMismatch
from storage.image_index import ImageIndex
from storage.token_store import TokenStore
from tests.builds import make_photos
from tests.stages import TokenizedImages
from tests.trainings import small_pretraining, tokenize_photos

CURVES = {"loss", "token_loss", "token_accuracy", "learning_rate", "gradient_norm"}


def feed_of(built: TokenizedImages, **settings: object) -> TokenImages:
    index, store = ImageIndex.read(built.images.path), open_tokens(built.tokens, built.images)
    return TokenImages(
        index,
        open_source(built.source),
        store.load(),
        choose_rows(index, store, train="train", val="val"),
        preprocessing=pretraining_square(64),
        decoding="fast",
        seed=0,
        settings=Settings(**{"device": "cpu", "workers": 0, **settings}),
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_comes_with_the_tokens_of_its_own_row(workers: int, tokenized: TokenizedImages) -> None:
    tokens = TokenStore(tokenized.tokens.path).load()
    plain = feed_of(tokenized)
    rows = np.array([41, 3, 17])
    [batch] = feed_of(tokenized, workers=workers).training([Share(0, 0, rows)])
    assert batch.rows.tolist() == rows.tolist()
    assert batch.inputs[1].tolist() == tokens[rows].tolist()
    assert sum(tensor.nbytes for tensor in batch.inputs) <= len(rows) * (plain.image_bytes + 8)  # the seed
    for place, row in enumerate(rows):
        [alone] = plain.validation([np.array([row])])
        assert torch.equal(alone.inputs[0][0], batch.inputs[0][place])


def test_the_square_is_the_one_that_the_tokens_were_made_from(tokenized: TokenizedImages) -> None:
    """The encoder's own pixels at the same size, up to the rounding of the faster resize."""
    from PIL import Image

    feed, index = feed_of(tokenized), ImageIndex.read(tokenized.images.path)
    row = int(feed.train_rows[5])
    [batch] = feed.validation([np.array([row])])
    with Image.open(Path(tokenized.source.path) / index.name(row)) as image:
        short = min(image.size)
        left, top = ((side - short) // 2 for side in image.size)
        square = image.convert("RGB").crop((left, top, left + short, top + short)).resize((64, 64), 3)
    difference = np.abs(np.asarray(square).astype(int) - batch.inputs[0][0].permute(1, 2, 0).numpy().astype(int))
    assert np.median(difference) <= 3  # crop and resize do not commute to the last digit


def test_seeds_change_with_the_epoch_and_stay_in_validation(tokenized: TokenizedImages) -> None:
    feed, rows = feed_of(tokenized), np.array([1, 2])
    first, second = feed.training([Share(0, 0, rows), Share(9, 1, rows)])
    assert (first.inputs[2] != second.inputs[2]).all()
    once, again = (next(iter(feed.validation([rows]))) for _ in range(2))
    assert torch.equal(once.inputs[2], again.inputs[2])


def test_another_revision_of_one_objective_changes_no_fingerprint_of_the_others() -> None:
    config = PretrainConfig()
    for name, known in OBJECTIVES.items():
        options = PretrainOptions(objective=name)
        sections = (getattr(config.objectives, name), config.backbone, config.training)
        definition = pretraining_definition(options, *sections)
        assert definition.get("objective_revision", 1) == known.revision
        assert ("objective_revision" in definition) == (name == "cae"), "which alone has changed since the first"


def test_tokens_of_other_images_are_refused_with_a_sentence(tokenized: TokenizedImages, tmp_path: Path) -> None:
    other = tokenize_photos(tmp_path, train=9, val=2)
    mixed = replace(tokenized, tokens=other.tokens)
    with pytest.raises(StoreMismatch, match=r"tokens of image index \w{12}, the images given have index \w{12}"):
        small_pretraining(mixed, tmp_path / "root")


def test_images_without_tokens_are_left_out_and_counted(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=9, val=3)
    (photos / "train/bloom/0002.jpg").write_bytes(b"no image")
    (photos / "val/roof/0000.jpg").write_bytes(b"")
    from pipeline.configuration.overrides import apply_overrides
    from tests.builds import build, small_config

    config = apply_overrides(small_config(photos, tmp_path / "clip"), ["codebook.vocabulary=16"])
    made = build(config, tmp_path / "data")
    built = TokenizedImages(made["index_images"].artifact, config.images, made["tokenize_images"].artifact)
    summary = small_pretraining(built, tmp_path / "root").artifact.summary
    assert (summary["train_images"], summary["val_images"], summary["images_without_tokens"]) == (17, 5, 2)


def test_an_image_that_changed_since_its_tokens_were_made_stops_the_run(tmp_path: Path) -> None:
    built = tokenize_photos(tmp_path, train=9, val=3)
    photo = Path(built.source.path) / "train/roof/0004.jpg"
    photo.write_bytes(photo.read_bytes() + b"more")
    with pytest.raises(PipelineError, match=r"train/roof/0004\.jpg: had \d+ bytes when the data set was indexed"):
        small_pretraining(built, tmp_path / "root", "training.batch_size=18")


def test_a_backbone_with_another_number_of_patches_is_refused(tokenized: TokenizedImages, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"an image has 4 x 4 tokens, the backbone cuts it into 14 x 14 patches"):
        small_pretraining(tokenized, tmp_path, "backbone.image_size=224")


def test_a_cutting_point_that_leaves_no_target_is_refused(tokenized: TokenizedImages, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cutting_point 50 does not cut 16 patches"):
        small_pretraining(tokenized, tmp_path, "objectives.mapet.cutting_point=50")


def test_an_unknown_split_names_those_there_are(tokenized: TokenizedImages, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"'training' has no images with tokens; the index has train \(60\)"):
        small_pretraining(tokenized, tmp_path, "pretrain.train_split=training")


def test_a_data_set_without_validation_images_trains_without(tmp_path: Path) -> None:
    built = tokenize_photos(tmp_path, train=9, val=1)
    made = small_pretraining(built, tmp_path / "root", "pretrain.val_split=test").artifact
    assert made.summary["val_images"] == 0
    assert not any("val_token_loss" in entry for entry in read_history(made.path))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_and_draws_the_same_curves(
    objective: str, tokenized: TokenizedImages, tmp_path: Path
) -> None:
    overrides = [f"pretrain.objective={objective}", "training.epochs=6"]
    made = small_pretraining(tokenized, tmp_path, *overrides).artifact
    history = read_history(made.path)
    points = [entry for entry in history if "loss" in entry]
    assert len(points) == made.summary["steps"] == 42
    assert all(set(point) >= CURVES for point in points)
    assert sum("val_token_accuracy" in entry for entry in history) == 6
    losses = [point["token_loss"] for point in points]
    assert np.mean(losses[-7:]) < np.mean(losses[:7]) - 0.1
    assert made.summary["targets"] < made.summary["patches"] == 16


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_the_curve_of_float32(
    precision: str, tokenized: TokenizedImages, tmp_path: Path
) -> None:
    whole, half = (
        small_pretraining(tokenized, tmp_path / name, f"training.precision={name}").artifact
        for name in ("fp32", precision)
    )
    curves = [[entry["loss"] for entry in read_history(made.path) if "loss" in entry] for made in (whole, half)]
    assert curves[1] == pytest.approx(curves[0], rel=0.03)
    assert curves[1] != curves[0]


@pytest.fixture(scope="module")
def trained(tokenized: TokenizedImages, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A data root with one tracked pre-training that was asked for twice, and the artifact's folder."""
    root = tmp_path_factory.mktemp("trained")
    settings = Settings(data_root=root, device="cpu", workers=0)
    with mlflow_run("test", settings) as run:
        first = small_pretraining(tokenized, root, run=run)
        second = small_pretraining(tokenized, root, run=run, checkpoint_steps=3)
    assert (first.cached, second.cached) == (False, True)
    return root, str(first.artifact.path)


def test_another_option_is_another_artifact_and_another_machine_is_not(
    tokenized: TokenizedImages, trained: tuple[Path, str]
) -> None:
    root, path = trained
    assert str(small_pretraining(tokenized, root, micro_batch_size=4).artifact.path) == path
    assert not small_pretraining(tokenized, root, "pretrain.seed=1").cached


def test_the_artifact_is_a_directory_that_timm_loads(trained: tuple[Path, str], tmp_path: Path) -> None:
    _, path = trained
    backbone = load_backbone(Path(path)).eval()
    words = export_weights(Path(path), tmp_path / "exported")
    assert words == "vit_demo pre-trained with mapet (14 steps)"
    exported = timm.create_model(f"local-dir:{tmp_path / 'exported'}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(exported.forward_features(images), backbone.forward_features(images))
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["mapet"]["pretraining"]["objective"] == "mapet"
    assert set(load_file(Path(path) / "objective.safetensors")) == {"mask_token", "head.weight", "head.bias"}


def test_exporting_what_is_no_backbone_or_onto_something_is_refused(
    tokenized: TokenizedImages, trained: tuple[Path, str], tmp_path: Path
) -> None:
    with pytest.raises(ArtifactMissing, match="an artifact of tokenize_images, expected one of pretrain"):
        export_weights(tokenized.tokens.path, tmp_path / "new")
    with pytest.raises(PipelineError, match="exists; name a directory that does not"):
        export_weights(Path(trained[1]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_given_tokens_are_checked(tokenized: TokenizedImages, tmp_path: Path) -> None:
    assert GivenTokens(tokenized.tokens.path).read() == tokenized.tokens
    with pytest.raises(ArtifactMissing, match="expected one of tokenize_images"):
        GivenTokens(tokenized.images.path).read()
    copied = shutil.copytree(tokenized.tokens.path, tmp_path / "copied")
    (copied / "counts.npy").write_bytes(b"")
    with pytest.raises(ArtifactDamaged, match=r"counts\.npy.*not rebuilt"):
        GivenTokens(copied).read()


def test_mlflow_holds_the_curves_and_what_tells_runs_apart(trained: tuple[Path, str]) -> None:
    """In an experiment of their own, where MLflow compares them; the run that asked for it has a child that says so."""
    root, path = trained
    settings = Settings(data_root=root)
    client = MlflowClient(tracking_uri(settings))
    flow, compared = (client.get_experiment_by_name(name) for name in ("mapet", "mapet-pretrain"))
    assert flow is not None
    assert compared is not None
    runs = client.search_runs([compared.experiment_id])
    built = next(run for run in runs if run.data.tags["fingerprint"] == Path(path).name)
    assert built.info.run_name == "pretrain mapet vit_demo, kclip, 2 epochs, seed 0"
    assert "mlflow.parentRunId" not in built.data.tags
    assert {"objective": "mapet", "backbone": "vit_demo", "tokenizer": "kclip"}.items() <= built.data.tags.items()
    assert built.data.tags["mlflow.runColor"]
    assert built.data.params["targets"] == "12"
    for name in (*CURVES, "val_token_loss", "val_token_accuracy", "images_per_second", "data_wait_share", "epoch"):
        steps = [point.step for point in client.get_metric_history(built.info.run_id, name)]
        assert steps, name
        assert max(steps) == 14, name
    assert len(client.get_metric_history(built.info.run_id, "loss")) >= 14
    children = client.search_runs([flow.experiment_id], "tags.stage = 'pretrain'")
    assert {run.data.tags["made_by_run"] for run in children} == {built.info.run_id}
    assert sorted(run.data.tags["cached"] for run in children) == ["false", "true"]
