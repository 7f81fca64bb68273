"""The stage `fit_vqkd`: what it writes, what is cached, killed, refused, and done in pieces and by two processes."""

import gc
import json
import shutil
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.encoders.base import PatchEncoder
from models.errors import ModelError
from models.tokenizers.vqkd import load_vqkd
from models.vqkd.options import VQKDOptions
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.inputs import VQKD_FILE
from pipeline.data.square_crops import BAD_IMAGES
from pipeline.engine.errors import PipelineError
from pipeline.engine.tracker import NoTracking
from pipeline.training.history import HISTORY, read_history
from storage.artifact import Artifact
from tests.builds import make_photos
from tests.forked import call
from tests.pipeline.vqkds import TRAINING, Photos, fit, indexed
from tests.tiny_clip import write_tiny_clip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    folder = tmp_path_factory.mktemp("photos")
    return indexed(make_photos(folder / "photos"), folder)


class Teachers(NoTracking):
    """Counts the networks of teachers that came into memory while one teaches."""

    def __init__(self) -> None:
        gc.collect()  # what other tests left
        self.before = patch_encoders()
        self.most = 0

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.most = max(self.most, len(patch_encoders() - self.before))


def patch_encoders() -> weakref.WeakSet[PatchEncoder]:
    return weakref.WeakSet(held for held in gc.get_objects() if isinstance(held, PatchEncoder))


@pytest.fixture(scope="module")
def fitted(photos: Photos, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return fit(photos, tmp_path_factory.mktemp("fitted")).artifact


def curve(artifact: Artifact, name: str) -> list[float]:
    return [entry[name] for entry in read_history(artifact.path) if name in entry]


# ---------------------------------------------------------------------------------------------------- the artifact


def test_the_loss_falls_and_the_summary_says_how_the_vocabulary_is_used(fitted: Artifact) -> None:
    losses = curve(fitted, "loss")
    assert len(losses) == 28
    assert np.mean(losses[-7:]) < 0.7 * np.mean(losses[:7])
    assert len(set(curve(fitted, "perplexity"))) == 28, "every step moves the codes"
    summary = dict(fitted.summary)
    assert (summary["steps"], summary["vocabulary"], summary["bad_images"]) == (28, 16, 0)
    assert (summary["train_images"], summary["val_images"]) == (60, 12)
    assert summary["loss"] == pytest.approx(1 - summary["cosine"] + summary["commitment"], abs=1e-5)
    assert {"val_loss", "val_cosine", "val_commitment", "largest_share"} <= summary.keys()
    assert 0.5 < summary["used_share"] <= 1
    assert 4 < summary["perplexity"] <= 16
    assert {entry.name for entry in fitted.path.iterdir()} == {VQKD_FILE, HISTORY, BAD_IMAGES, "artifact.json"}


def test_the_checkpoint_is_a_tokenizer(fitted: Artifact) -> None:
    chosen = VQKDOptions(checkpoint=str(fitted.path / VQKD_FILE), image_size=32, precision="fp32")
    tokenizer = load_vqkd(chosen)
    assert (tokenizer.grid, tokenizer.vocabulary) == ((4, 4), 16)
    squares = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = tokenizer(squares)
    assert tokens.min() >= 0
    assert tokens.max() < 16


def test_the_second_time_it_is_there(photos: Photos, fitted: Artifact) -> None:
    again = fit(photos, fitted.path.parents[1])
    assert again.cached
    assert again.artifact.digest == fitted.digest


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"smallest_crop": 0.4},
        {"start_images": 30},
        {"codebook": {"revive_below": 0.2}},
        {"network": {"decoder_depth": 2}},
        {"training": {"epochs": 3}},
    ],
)
def test_other_options_make_another_artifact(
    changed: dict[str, object], photos: Photos, fitted: Artifact, tmp_path: Path
) -> None:
    short = {**changed, "training": {**TRAINING, "epochs": 1, **changed.get("training", {})}}  # type: ignore[dict-item]
    assert fit(photos, tmp_path, changed=short).artifact.fingerprint != fitted.fingerprint


def test_where_the_teacher_lies_does_not_matter_but_its_weights_do(
    photos: Photos, fitted: Artifact, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(photos.clip, moved)
    assert fit(replace(photos, clip=moved), fitted.path.parents[1]).cached
    write_tiny_clip(tmp_path / "other", seed=5)
    with pytest.raises(KeyboardInterrupt):
        fit(replace(photos, clip=tmp_path / "other"), fitted.path.parents[1], run=Interrupting(1))


# ------------------------------------------------------------------------------------------ killed, and in pieces


class Interrupting(NoTracking):
    """Ends the run when the curves reach a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        if "loss" in values and step >= self._step:
            raise KeyboardInterrupt


def test_a_run_that_is_killed_again_and_again_leaves_the_bytes_of_one_that_is_not(
    photos: Photos, fitted: Artifact, tmp_path: Path
) -> None:
    for step in (2, 11, 20):
        with pytest.raises(KeyboardInterrupt):
            fit(photos, tmp_path, run=Interrupting(step), checkpoint_steps=4)
    [partial] = (tmp_path / "fit_vqkd").glob("*.partial")
    assert [path.stem for path in partial.glob("checkpoints/*.pt")], "there is something to go on from"
    made = fit(photos, tmp_path).artifact
    for name in (VQKD_FILE, HISTORY):
        assert (made.path / name).read_bytes() == (fitted.path / name).read_bytes(), name
    assert made.digest == fitted.digest
    assert made.summary == fitted.summary


@pytest.mark.parametrize("setting", [{"micro_batch_size": 3}, {"workers": 2}, {"gradient_checkpointing": True}])
def test_settings_of_the_machine_change_no_curve(
    setting: dict[str, int], photos: Photos, fitted: Artifact, tmp_path: Path
) -> None:
    short = {"training": {"epochs": 2}}
    plain = fit(photos, tmp_path / "plain", changed=short).artifact
    other = fit(photos, tmp_path / "other", changed=short, **setting).artifact
    assert other.fingerprint == plain.fingerprint
    for name in ("loss", "cosine", "commitment", "perplexity"):
        assert curve(other, name) == pytest.approx(curve(plain, name), rel=1e-3), name


def test_two_processes_follow_the_curve_of_one(photos: Photos, tmp_path: Path) -> None:
    short = {"training": {"epochs": 2}}
    alone = fit(photos, tmp_path / "one", changed=short).artifact
    shared = {"processes": 2, "micro_batch_size": 2}
    together = call(tmp_path / "said", fit, photos, tmp_path / "two", changed=short, **shared).artifact
    assert together.notes["processes"] == 2
    for name in ("loss", "cosine", "commitment", "perplexity", "val_loss"):
        assert curve(together, name) == pytest.approx(curve(alone, name), rel=1e-3), name
    assert together.fingerprint == alone.fingerprint
    assert together.summary["perplexity"] == pytest.approx(alone.summary["perplexity"], rel=0.05)


# ------------------------------------------------------------------------------------------------------- refusals


def test_a_teacher_with_other_patches_is_refused(photos: Photos, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"sees 4 x 4 patches .* cuts 64 pixels into patches of 8"):
        fit(photos, tmp_path, changed={"network": {"image_size": 64}})


def test_fewer_patches_than_codes_are_refused(photos: Photos, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^320 patches to start 321 codes from.*start_images"):
        fit(photos, tmp_path, changed={"network": {"vocabulary": 321}, "start_images": 20})


def test_a_split_without_images_is_refused_with_those_that_have_some(photos: Photos, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"fit_vqkd.train_split='trian' has no images; .*train \(60\), val \(12\)"):
        fit(photos, tmp_path, changed={"train_split": "trian"})


def test_without_validation_images_nothing_is_validated(photos: Photos, tmp_path: Path) -> None:
    made = fit(photos, tmp_path, changed={"val_split": "", "training": {"epochs": 1}}).artifact
    assert made.summary["val_images"] == 0
    assert not any(name.startswith("val_loss") for name in made.summary)


# ----------------------------------------------------------------------------------------------------- bad images


@pytest.fixture
def damaged(tmp_path: Path) -> Photos:
    """Of 16 training images two are no images, and one of 4 to validate on."""
    folder = make_photos(tmp_path / "photos", train=8, val=2)
    for name in ("train/bloom/0007.jpg", "train/roof/0003.jpg", "val/bloom/0000.jpg"):
        (folder / name).write_bytes(b"no image at all")
    return indexed(folder, tmp_path)


def test_bad_images_are_left_out_counted_and_listed(damaged: Photos, tmp_path: Path) -> None:
    made = fit(damaged, tmp_path / "root", workers=2).artifact
    assert made.summary["bad_images"] == 3
    listed = [json.loads(line) for line in (made.path / BAD_IMAGES).read_text().splitlines()]
    assert [item["name"] for item in listed] == ["train/bloom/0007.jpg", "train/roof/0003.jpg", "val/bloom/0000.jpg"]
    assert all("not one of JPEG" in item["reason"] for item in listed)


def test_as_many_bad_images_as_allowed_and_no_more(damaged: Photos, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"images are bad, 1 are allowed \(.*not one of JPEG"):
        fit(damaged, tmp_path / "root", decoding=DecodingOptions(max_bad_images=1))
    with pytest.raises(PipelineError, match=r"jpg: not one of JPEG.*; mend or remove it"):
        fit(damaged, tmp_path / "root", decoding=DecodingOptions(on_bad_image="fail"))
    assert (
        fit(damaged, tmp_path / "root", decoding=DecodingOptions(max_bad_images=3)).artifact.summary["bad_images"] == 3
    )
    with pytest.raises(PipelineError, match="has 3 bad images, this run allows 2"):
        fit(damaged, tmp_path / "root", decoding=DecodingOptions(max_bad_images=2))


def test_the_stage_keeps_no_teacher_beside_the_one_that_teaches(photos: Photos, tmp_path: Path) -> None:
    """On a GPU it would lie beside the training, in another process or in this one."""
    teachers = Teachers()
    fit(photos, tmp_path, run=teachers, changed={"training": {"epochs": 1}})
    assert teachers.most == 1
