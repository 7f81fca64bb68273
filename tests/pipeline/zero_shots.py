"""Small real zero-shot classifications, for tests."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.clip.options import ClipOptions
from models.vit.options import BackboneOptions
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.settings import Settings
from pipeline.engine.tracker import NoTracking
from pipeline.engine.workspace import Workspace
from pipeline.stages.evaluate.evaluation_options import ZeroShotOptions
from pipeline.stages.evaluate.protocol import EvaluationJob, Subject
from pipeline.stages.evaluate.scores import Score, read_scores
from pipeline.stages.evaluate.zero_shot import zero_shot
from pipeline.training.launch import train_together
from tests.stages import index_images


def job_of(folder: Path, images: Path, clip: ClipOptions | None, **options: Any) -> EvaluationJob:
    settings = Settings(data_root=folder / "root", device="cpu", workers=0, batch_size=5)
    source = ImageSourceOptions(path=str(images))
    (folder / "scores").mkdir(parents=True)
    return EvaluationJob(
        ZeroShotOptions(**options),
        Subject(BackboneOptions(name="vit_demo", image_size=64), None),
        index_images(source, workspace=Workspace(settings)).artifact,
        source,
        None,
        folder / "scores",
        settings,
        clip,
    )


def classify(job: EvaluationJob, **settings: Any) -> tuple[dict[str, Score], np.ndarray]:
    """Return the scores by name, and which images were judged right."""
    machine = job.settings.model_copy(update=settings)
    speed = train_together(partial(zero_shot, job), machine, NoTracking(), what="zero-shot")
    assert speed["images_per_second"] > 0
    with np.load(job.folder / "correct.npz") as judged:
        return {score.name: score for score in read_scores(job.folder)}, judged["top1"]
