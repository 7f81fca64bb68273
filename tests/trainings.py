"""Small real pre-trainings for tests, on tokens of a small real build."""

from pathlib import Path
from typing import Any

from pipeline.configuration.config import PretrainConfig
from pipeline.configuration.overrides import apply_overrides
from pipeline.engine.settings import Settings
from pipeline.engine.tracker import NoTracking, TrackedRun
from pipeline.engine.workspace import StageResult, Workspace
from pipeline.training.history import read_history
from tests.builds import build, make_photos, small_config
from tests.forked import Forked, start
from tests.stages import TokenizedImages, pretrain

# 60 training images of 16 patches in 32 kinds: 7 steps an epoch.
SMALL = (
    "backbone.name=vit_demo",
    "backbone.image_size=64",
    "objectives.mim.masked=6",
    "objectives.pim.cutting_point=5",
    "objectives.mapet.cutting_point=5",
    "objectives.beit.masked=6",
    "objectives.beit.min_block=2",
    "objectives.cae.masked=8",
    "objectives.cae.min_block=2",
    "training.epochs=2",
    "training.warmup_epochs=1",
    "training.batch_size=8",
    "training.peak_learning_rate=0.003",
    "training.precision=fp32",
    "training.report_steps=1",
)


def tokenize_photos(folder: Path, **photos: int) -> TokenizedImages:
    """Tokenize 60 training and 12 validation photographs unless told otherwise."""
    config = small_config(make_photos(folder / "photos", **photos), folder / "clip")
    made = build(config, folder / "root")
    return TokenizedImages(made["index_images"].artifact, config.images, made["tokenize_images"].artifact)


def small_pretraining(
    built: TokenizedImages, root: Path, *overrides: str, run: TrackedRun | None = None, **settings: Any
) -> StageResult:
    """Return the stage `pretrain` on them, in this process unless the settings say otherwise."""
    config = apply_overrides(PretrainConfig(), [*SMALL, *overrides])
    machine = Settings(**{"data_root": root, "device": "cpu", "workers": 0, **settings})
    return pretrain(config, built, Workspace(machine, run or NoTracking()))


def begin_pretraining(built: TokenizedImages, root: Path, folder: Path, *overrides: str, **settings: Any) -> Forked:
    """Begin the same in a process of its own, to be killed; `folder` takes what it says."""
    return start(folder, _pretrain, built, root, overrides, settings)


def _pretrain(built: TokenizedImages, root: Path, overrides: tuple[str, ...], settings: dict[str, Any]) -> None:
    small_pretraining(built, root, *overrides, **settings)


def steps_on_disk(root: Path) -> int:
    """Return how far the pre-training came that is not finished."""
    return max((entry["step"] for path in root.glob("pretrain/*.partial") for entry in read_history(path)), default=0)
