"""Small real segmentations, for tests."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.training import Silence
from models.heads.segmenter_options import SegmenterOptions
from models.vit.options import BackboneOptions
from pipeline.data.demo_options import DemoImagesOptions, DemoSegmentationOptions
from pipeline.data.demo_segmentation import CLASSES
from pipeline.data.segmentation_options import SegmentationTransformOptions
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.processes import Processes
from pipeline.engine.settings import Settings
from pipeline.stages.evaluate.protocol import EvaluationJob, Subject
from pipeline.stages.evaluate.scores import Score, read_scores
from pipeline.stages.evaluate.segmentation import (
    SegmentationOptions,
    segmentation,
)
from pipeline.training.options import TrainingOptions
from storage.artifact import Artifact

DRAWING = DemoImagesOptions(image_size=32)

COUNTS = DemoSegmentationOptions(train_images=20, val_images=10)

BACKBONE = BackboneOptions(name="vit_demo", image_size=32, patch_size=8)

CPU = Processes(torch.device("cpu"))


def small_options(root: Path, **training: object) -> SegmentationOptions:
    """Choose 15 steps of 8 images, with everything random that there is."""
    given = {
        **{"epochs": None, "steps": 15, "batch_size": 8, "peak_learning_rate": 2e-3, "decay": "linear"},
        **{"warmup_epochs": 0, "warmup_steps": 2, "gradient_clip": None, "precision": "fp32", "report_steps": 1},
    }
    return SegmentationOptions(
        path=str(root),
        classes=CLASSES,
        training=TrainingOptions.model_validate({**given, **training}),
        drop_path_rate=0.3,
        network=SegmenterOptions(image_size=32, blocks=(0, 1, 2, 3), channels=16, auxiliary_channels=16),
        transforms=SegmentationTransformOptions(short_side=32, long_side=128),
        stride=21,
    )


def job_of(options: SegmentationOptions, data: Artifact, folder: Path, **settings: Any) -> EvaluationJob:
    folder.mkdir(parents=True, exist_ok=True)
    machine = Settings(**{"data_root": folder, "device": "cpu", "workers": 0, **settings})
    return EvaluationJob(options, Subject(BACKBONE, None), data, ImageSourceOptions(), None, folder, machine)


def run(options: SegmentationOptions, data: Artifact, folder: Path, **settings: Any) -> dict[str, Score]:
    segmentation(job_of(options, data, folder, **settings), CPU, Silence())
    return {score.name: score for score in read_scores(folder)}
