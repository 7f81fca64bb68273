"""A small build, pre-training and evaluation, which the tests of several flows run, and what their runs leave."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.chains.kclip_build import kclip_build
from pipeline.configuration.config import KClipBuildConfig
from pipeline.configuration.overrides import apply_overrides
from pipeline.configuration.presets import demo

DEPLOYMENT = "kclip-build/demo"
SMALL_OVERRIDES = [
    "demo_images.limit=60",
    "demo_images.renderings=1",
    "demo_clip.epochs=1",
    "demo_clip.width=4",
    "demo_clip.batch_size=16",
    "features.sample_fraction=0.5",
    "codebook.vocabulary=16",
    "codebook.iterations=2",
    "images.images_per_shard=32",
]
PRETRAINING = ("training.epochs=2", "training.batch_size=16", "pretrain.objective=pim")
EVALUATION = (
    *PRETRAINING,
    'evaluate.protocols=["frozen_features","tokens_as_input"]',
    "frozen_features.training.epochs=1",
    "frozen_features.training.batch_size=16",
    "frozen_features.training.validation_epochs=1",
    "frozen_features.neighbours=5",
    "tokens_as_input.training.epochs=1",
    "tokens_as_input.training.batch_size=16",
    "tokens_as_input.training.validation_epochs=1",
)
SMALL = apply_overrides(demo(), SMALL_OVERRIDES)
STAGES = kclip_build(SMALL).names


@dataclass(frozen=True)
class MlflowRun:
    """A run as it stands in the SQLite database of the data root."""

    id: str
    name: str
    status: str
    tags: dict[str, str]


def mlflow_runs(data_root: Path) -> list[MlflowRun]:
    with closing(sqlite3.connect(data_root / "mlflow" / "mlflow.db")) as database:
        tags: dict[str, dict[str, str]] = {}
        for run, key, value in database.execute("SELECT run_uuid, key, value FROM tags"):
            tags.setdefault(run, {})[key] = value
        rows = database.execute("SELECT run_uuid, name, status FROM runs ORDER BY start_time").fetchall()
    return [MlflowRun(run, name, status, tags.get(run, {})) for run, name, status in rows]


def as_parameter(config: KClipBuildConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def states(stages: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {stage: task["state"]["name"] for stage, task in stages.items()}
