"""Every protocol's scores on the device, against the CPU's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu_check.training import Silence
from models.clip.options import ClipOptions
from pipeline.engine.processes import Processes
from pipeline.engine.settings import Settings
from pipeline.engine.tracker import NoTracking
from pipeline.engine.workspace import Workspace
from pipeline.stages.evaluate.protocols import PROTOCOLS
from pipeline.stages.evaluate.scores import read_scores
from pipeline.stages.evaluate.segmentation import segmentation
from pipeline.training.history import read_history
from storage.artifact import Artifact
from tests.builds import make_photos
from tests.evaluations import TRAINED, small_evaluation
from tests.pipeline.segmentations import COUNTS, DRAWING, job_of, small_options
from tests.pipeline.zero_shots import classify
from tests.pipeline.zero_shots import job_of as zero_shot_job_of
from tests.stages import TokenizedImages, make_demo_segmentation
from tests.tiny_clip import write_tiny_clip
from tests.trainings import small_pretraining

AN_IMAGE = 100 / 12 + 0.01  # of twelve; one in doubt may be judged otherwise
OPTIONS = {"fine_tune": ("fine_tune.training.epochs=2",)}


@pytest.fixture(scope="module")
def pretrained(device: str, tokenized: TokenizedImages, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_pretraining(tokenized, tmp_path_factory.mktemp("pretrained")).artifact


def last(folder: Path, name: str) -> float:
    return next(entry[name] for entry in reversed(read_history(folder)) if name in entry)


def test_every_protocol_is_here() -> None:
    assert set(PROTOCOLS) == {*TRAINED, "segmentation", "zero_shot"}


@pytest.mark.parametrize("protocol", TRAINED)
def test_scores_are_those_of_the_cpu(
    protocol: str, device: str, tokenized: TokenizedImages, pretrained: Artifact, tmp_path: Path
) -> None:
    made = {
        where: small_evaluation(
            protocol,
            tokenized,
            tmp_path / name,
            *OPTIONS.get(protocol, ()),
            pretrained=None if PROTOCOLS[protocol].judges == "tokens" else pretrained,
            device=where,
        ).artifact
        for name, where in (("cpu", "cpu"), ("device", device))
    }
    expected, found = ({score.name: score.value for score in read_scores(made[x].path)} for x in ("cpu", device))
    assert found == pytest.approx(expected, abs=AN_IMAGE)
    assert last(made[device].path, "val_loss") == pytest.approx(last(made["cpu"].path, "val_loss"), rel=0.02)


def test_segmentation_scores_are_those_of_the_cpu(device: str, tmp_path: Path) -> None:
    workspace = Workspace(Settings(data_root=tmp_path / "demo", device="cpu"), NoTracking())
    data = make_demo_segmentation(COUNTS, drawing=DRAWING, workspace=workspace).artifact
    options, scores = small_options(data.path), {}
    for name, where in (("cpu", "cpu"), ("device", device)):
        job = job_of(options, data, tmp_path / name, device=where)
        segmentation(job, Processes(torch.device(where)), Silence())
        scores[name] = {score.name: score.value for score in read_scores(tmp_path / name)}
    assert scores["device"] == pytest.approx(scores["cpu"], abs=2)
    assert last(tmp_path / "device", "val_loss") == pytest.approx(last(tmp_path / "cpu", "val_loss"), rel=0.02)


def test_zero_shot_judgements_are_those_of_the_cpu(device: str, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=1)
    model = write_tiny_clip(tmp_path / "clip", reads_captions=True)
    clip = ClipOptions(model=model, precision="fp32", image_size=128, dilate_last_stage=True)
    (expected, right), (found, judged) = (
        classify(zero_shot_job_of(tmp_path / name, photos, clip, templates="simple"), device=where)
        for name, where in (("cpu", "cpu"), ("device", device))
    )
    assert np.abs(judged.astype(int) - right.astype(int)).sum() <= 1
    assert found["top1"].value == pytest.approx(expected["top1"].value, abs=AN_IMAGE)
