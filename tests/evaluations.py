"""Small real evaluations for tests, of pre-trainings of `tests/trainings.py`."""

from pathlib import Path
from typing import Any

from pipeline.configuration.config import EvaluateConfig
from pipeline.configuration.overrides import apply_overrides
from pipeline.engine.settings import Settings
from pipeline.engine.tracker import NoTracking, TrackedRun
from pipeline.engine.workspace import StageResult, Workspace
from pipeline.stages.evaluate.protocols import PROTOCOLS
from storage.artifact import Artifact
from tests.stages import TokenizedImages, evaluate
from tests.trainings import SMALL

TRAINED = [name for name in PROTOCOLS if name not in ("segmentation", "zero_shot")]  # which have tests of their own
SMALL_EVALUATIONS = [
    *SMALL,
    *(
        f"{protocol}.training.{option}"
        for protocol in TRAINED
        for option in ("epochs=3", "batch_size=16", "warmup_epochs=0", "precision=fp32", "report_steps=1")
    ),
    "fine_tune.training.peak_learning_rate=0.001",
    "frozen_features.neighbours=5",
    "linear_probe.learning_rate_factors=[1.0,4.0]",
]


def small_evaluation(
    protocol: str,
    built: TokenizedImages,
    root: Path,
    *overrides: str,
    pretrained: Artifact | None = None,
    run: TrackedRun | None = None,
    keep_weights: bool = False,
    **settings: Any,
) -> StageResult:
    config = apply_overrides(EvaluateConfig(), [*SMALL_EVALUATIONS, *overrides])
    machine = Settings(**{"data_root": root, "device": "cpu", "workers": 0, **settings})
    return evaluate(
        protocol,
        options=getattr(config, protocol),
        backbone=config.backbone,
        pretrained=pretrained,
        images=built.images,
        source=built.source,
        tokens=built.tokens,
        keep_weights=keep_weights,
        workspace=Workspace(machine, run or NoTracking()),
    )
