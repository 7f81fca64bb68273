"""The stage `evaluate`: protocols on small real photographs of two kinds, what is cached, tracked and refused."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mlflow import MlflowClient
from timm.data import create_transform, resolve_data_config

from models.vit.classifier import build_classifier, classify
from models.vit.options import BackboneOptions
from pipeline.commands.export import export_weights
from pipeline.data.labelled_images import choose_labelled, open_rgb
from pipeline.data.sources.kinds import open_source
from pipeline.engine.errors import PipelineError
from pipeline.engine.mlflow_tracker import mlflow_run, tracking_uri
from pipeline.engine.settings import Settings
from pipeline.stages.evaluate.kept_classifier import CLASSIFIER, classifier_bytes, keep_classifier
from pipeline.stages.evaluate.scores import read_scores
from pipeline.training.history import HISTORY, read_history
from storage.artifact import Artifact
from storage.image_index import ImageIndex
from tests.builds import CLASSES, make_photos
from tests.commands import mapet
from tests.evaluations import TRAINED, small_evaluation
from tests.forked import call, start
from tests.stages import TokenizedImages
from tests.tiny_clip import write_tiny_clip
from tests.trainings import SMALL, small_pretraining


@pytest.fixture(scope="module")
def pretrained(tokenized: TokenizedImages, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_pretraining(tokenized, tmp_path_factory.mktemp("pretrained")).artifact


@pytest.mark.parametrize("protocol", TRAINED)
def test_every_protocol_scores_every_validation_image(
    protocol: str, tokenized: TokenizedImages, pretrained: Artifact, tmp_path: Path
) -> None:
    made = small_evaluation(protocol, tokenized, tmp_path, pretrained=pretrained).artifact
    scores = read_scores(made.path)
    assert {score.images for score in scores} == {12}
    with np.load(made.path / "correct.npz") as judged:
        assert all(judged[name].shape[-1] == 12 for name in judged)
    for score in scores:
        assert 0 <= score.low <= score.value <= score.high <= 100, score
        assert score.reading
        assert made.summary[score.name] == score.value
    assert any("val_top1" in entry for entry in read_history(made.path))


GENTLE = ("mixup=0", "cutmix=0", "auto_augment=", "erasing=0", "layer_decay=1", "training.peak_learning_rate=0.003")


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        ("frozen_features", ()),
        ("linear_probe", ("learning_rate_factors=[1.0,10.0]", "smallest_crop=0.8")),
        ("fine_tune", (*GENTLE, "smallest_crop=0.8")),
    ],
)
def test_flowers_and_roofs_are_told_apart(
    protocol: str, options: tuple[str, ...], tokenized: TokenizedImages, tmp_path: Path
) -> None:
    """Two photographs of different colours: even a network from scratch must come close to 100 %."""
    overrides = [f"{protocol}.{option}" for option in ("training.epochs=30", *options)]
    scores = read_scores(small_evaluation(protocol, tokenized, tmp_path, *overrides).artifact.path)
    assert max(score.value for score in scores if score.name != "top5") >= 90


def test_a_linear_probe_says_which_head_each_number_is_of(
    tokenized: TokenizedImages, pretrained: Artifact, tmp_path: Path
) -> None:
    made = small_evaluation("linear_probe", tokenized, tmp_path, pretrained=pretrained).artifact
    readings = {score.name: score.reading for score in read_scores(made.path)}
    assert readings["top1"] == "the paper's reading: block 4, class+mean, learning rate 0.004"
    assert readings["top1_last"].startswith("best head of the last block: block 4, ")
    assert "chosen on the validation images" in readings["top1_best"]
    with np.load(made.path / "correct.npz") as judged:
        assert judged["heads"].shape == (4 * 3 * 2, 12)  # blocks, poolings, learning rates
        assert 100 * judged["top1"].mean() == pytest.approx(made.summary["top1"], abs=1e-3)


def test_settings_and_other_tokenizers_change_no_evaluation(
    tokenized: TokenizedImages, pretrained: Artifact, tmp_path: Path
) -> None:
    first = small_evaluation("frozen_features", tokenized, tmp_path, pretrained=pretrained)
    again = small_evaluation("frozen_features", tokenized, tmp_path, pretrained=pretrained, workers=1)
    scratch = small_evaluation("frozen_features", tokenized, tmp_path)
    assert (first.cached, again.cached, scratch.cached) == (False, True, False)
    assert "scratch" in scratch.artifact.summary["what"]


AUGMENTED = ("fine_tune.training.epochs=14", "fine_tune.smallest_crop=0.5")  # and mixup, RandAugment, erasing


def test_a_fine_tuning_that_is_killed_goes_on_as_it_would_have(tokenized: TokenizedImages, tmp_path: Path) -> None:
    undisturbed = small_evaluation("fine_tune", tokenized, tmp_path / "undisturbed", *AUGMENTED).artifact
    root = tmp_path / "killed"
    evaluating = partial(small_evaluation, "fine_tune", tokenized, root, *AUGMENTED, checkpoint_steps=5)
    process = start(tmp_path / "said", evaluating)
    process.wait_until(lambda: list(root.glob("evaluate/*.partial/checkpoints/step-0000001*.json")))
    process.kill()
    made = small_evaluation("fine_tune", tokenized, root, *AUGMENTED).artifact
    assert (made.path / HISTORY).read_bytes() == (undisturbed.path / HISTORY).read_bytes()
    assert made.digest == undisturbed.digest


def saved_bytes(built: TokenizedImages, root: Path, *, gradient_checkpointing: bool) -> int:
    """Return what a fine-tuning keeps for its gradients, all steps together."""
    kept = [0]

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        small_evaluation(
            "fine_tune", built, root, "fine_tune.training.epochs=1", gradient_checkpointing=gradient_checkpointing
        )
    return sum(kept)


def test_fine_tuning_keeps_less_for_its_gradients_where_the_settings_say_so(
    tokenized: TokenizedImages, tmp_path: Path
) -> None:
    whole = saved_bytes(tokenized, tmp_path / "whole", gradient_checkpointing=False)
    assert saved_bytes(tokenized, tmp_path / "less", gradient_checkpointing=True) < whole / 2


def test_two_processes_score_as_one(tokenized: TokenizedImages, tmp_path: Path) -> None:
    alone = small_evaluation("tokens_as_input", tokenized, tmp_path / "one").artifact
    words = ("tokens_as_input", tokenized, tmp_path / "two")
    together = call(tmp_path / "said", small_evaluation, *words, processes=2).artifact
    losses = [[entry["loss"] for entry in read_history(made.path) if "loss" in entry] for made in (alone, together)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_scores_go_onto_the_run_of_the_pretraining_too(tokenized: TokenizedImages, tmp_path: Path) -> None:
    settings = Settings(data_root=tmp_path)
    with mlflow_run("test", settings) as run:
        trained = small_pretraining(tokenized, tmp_path, run=run).artifact
        made = small_evaluation("frozen_features", tokenized, tmp_path, pretrained=trained, run=run).artifact
    client = MlflowClient(tracking_uri(settings))
    metrics = client.get_run(trained.notes["tracking_run"]).data.metrics
    assert metrics["eval/frozen_features/knn_top1"] == made.summary["knn_top1"]
    own = client.get_run(made.notes["tracking_run"])
    assert own.data.metrics["knn_top1"] == made.summary["knn_top1"]
    assert own.data.tags["objective"] == "mapet"


def test_images_without_labels_cannot_be_evaluated(tokenized: TokenizedImages) -> None:
    index = ImageIndex.read(tokenized.images.path)
    with pytest.raises(PipelineError, match="split 'test' has no labelled images"):
        choose_labelled(index, train="train", val="test")


def test_a_fraction_of_the_labels_is_taken_evenly_from_every_class(tokenized: TokenizedImages) -> None:
    index = ImageIndex.read(tokenized.images.path)
    some = choose_labelled(index, train="train", val="val", fraction=0.2)
    assert np.bincount(index.labels[some.train]).tolist() == [6, 6]
    assert len(some.val) == 12


def test_scores_are_plain_json(tokenized: TokenizedImages, pretrained: Artifact, tmp_path: Path) -> None:
    made = small_evaluation("tokens_as_input", tokenized, tmp_path).artifact
    [top1, top5] = json.loads((made.path / "scores.json").read_text())
    assert top1["reading"] == "mlp on kclip tokens"
    assert top5["value"] == 100  # of two classes


@pytest.mark.parametrize("origin", ["pretrained", "scratch"])
def test_an_exported_classifier_judges_images_as_the_evaluation_did(
    origin: str, tokenized: TokenizedImages, pretrained: Artifact, tmp_path: Path
) -> None:
    subject = pretrained if origin == "pretrained" else None
    made = small_evaluation("fine_tune", tokenized, tmp_path, pretrained=subject, keep_weights=True).artifact
    words = export_weights(made.path, tmp_path / "my-vit")
    assert words.startswith(f"classifier, fine_tune {'mapet' if subject else 'scratch'} vit_demo, top-1 ")
    classifier = timm.create_model(f"local-dir:{tmp_path / 'my-vit'}", pretrained=True).eval()
    assert classifier.num_classes == 2
    assert classifier.pretrained_cfg["label_names"] == ["bloom", "roof"]
    index, reader = ImageIndex.read(tokenized.images.path), open_source(tokenized.source).reader()
    transform = create_transform(**resolve_data_config({}, model=classifier))
    rows = index.rows_of_split("val")
    pixels = torch.stack([transform(open_rgb(reader, index.entry(int(row)))) for row in rows])
    with torch.no_grad(), np.load(made.path / "correct.npz") as judged:
        right = classifier(pixels).argmax(1).numpy() == index.labels[rows]
        assert np.array_equal(right, judged["top1"])


def test_a_kept_classifier_has_the_logits_of_the_network_that_was_trained(tmp_path: Path) -> None:
    options = BackboneOptions(name="vit_demo", image_size=64, patch_size=16)
    model = build_classifier(options, 3, weights=None, seed=1).eval()
    keep_classifier(model, options, tmp_path, class_names=("a", "b"), crop_pct=0.9, origin="scratch")
    loaded = timm.create_model(f"local-dir:{tmp_path / CLASSIFIER}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(pixels), model(pixels))
        trained = classify(model, pixels, torch.zeros(2, dtype=torch.int64))
    assert torch.allclose(loaded(pixels), trained, atol=1e-6)
    assert not loaded.pretrained_cfg.get("label_names"), "two names for three classes name nothing"
    size = (tmp_path / CLASSIFIER / "model.safetensors").stat().st_size
    assert classifier_bytes(options) == pytest.approx(size, abs=10_000)


def test_without_kept_weights_fingerprints_stay_and_export_says_what_to_set(
    tokenized: TokenizedImages, tmp_path: Path
) -> None:
    lost = small_evaluation("fine_tune", tokenized, tmp_path, "fine_tune.training.epochs=1").artifact
    assert "keep_weights" not in lost.recipe.options
    with pytest.raises(PipelineError, match=r"kept no weights; .* evaluate\.keep_weights=true"):
        export_weights(lost.path, tmp_path / "my-vit")
    other = small_evaluation("tokens_as_input", tokenized, tmp_path, "tokens_as_input.training.epochs=1").artifact
    with pytest.raises(PipelineError, match="an evaluation by tokens_as_input; only fine_tune makes a classifier"):
        export_weights(other.path, tmp_path / "my-vit")
    assert not (tmp_path / "my-vit").exists()


def test_images_without_labels_are_refused_before_anything_is_built_of_them(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=20, val=4)
    for split in ("val", "train"):
        flat = tmp_path / f"flat-{split}"
        shutil.copytree(photos, flat)
        for path in [*(flat / split).rglob("*.jpg")]:
            path.rename(flat / split / f"{path.parent.name}{path.name}")
        for name in CLASSES:
            (flat / split / name).rmdir()
        words = ("folder", f"images.path={flat}", f"settings.data_root={tmp_path / 'data'}", "settings.workers=0")
        said = mapet(tmp_path / "said", "evaluate", *words)
        assert said.code == 2, said.err
        for protocol in ("tokens_as_input", "frozen_features", "fine_tune"):
            unlabelled = (
                f"{protocol}.{split}_split='{split}' has no labelled images: class folders (or labels) are needed"
            )
            assert unlabelled in said.last, said.err
        assert {path.name for path in (tmp_path / "data").iterdir()} <= {"index_images", "locks", "mlflow"}


def test_own_images_are_evaluated_and_their_classifier_is_exported(tmp_path: Path) -> None:
    photos, clip = make_photos(tmp_path / "photos", train=40, val=4), write_tiny_clip(tmp_path / "clip")
    root, said = tmp_path / "data", tmp_path / "said"
    small = (
        f"settings.data_root={root}",
        "settings.workers=0",
        f"images.path={photos}",
        f"clip.model={clip}",
        "clip.precision=fp32",
        "clip.dilate_last_stage=true",
        "codebook.vocabulary=16",
        *(word for word in SMALL if word.startswith(("backbone", "training"))),
        "backbone.patch_size=16",
        "objectives.mapet.cutting_point=5",
        'evaluate.protocols=["fine_tune"]',
        "evaluate.keep_weights=true",
        "fine_tune.training.epochs=6",
        "fine_tune.training.precision=fp32",
    )
    planned = mapet(said, "plan", "evaluate", "folder", *small)
    assert planned.code == 0, planned.err
    assert planned.out.endswith("\nevaluate.keep_weights keeps 1 classifier, about 1.0 MB\n")
    made = mapet(said, "evaluate", "folder", *small)
    assert made.code == 0, made.err
    [artifact] = (path for path in (root / "evaluate").iterdir())
    exported = mapet(said, "export", str(artifact), "--to", str(tmp_path / "my vit"))
    assert exported.code == 0, exported.err
    load = f"timm.create_model({f'local-dir:{tmp_path}/my vit'!r}, pretrained=True)   # timm 1.0.16 or newer"
    assert exported.out.rstrip().endswith(f"Load it:  {load}")
    assert timm.create_model(f"local-dir:{tmp_path}/my vit", pretrained=True).num_classes == 2
