"""Small real trainings of VQ-KDs, for tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.clip.options import ClipOptions
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.settings import Settings
from pipeline.engine.tracker import NoTracking, TrackedRun
from pipeline.engine.workspace import StageResult, Workspace
from pipeline.training.vqkd_options import FitVQKDOptions
from storage.artifact import Artifact
from tests.stages import fit_vqkd, index_images
from tests.tiny_clip import write_tiny_clip

# 60 training images of 16 patches in 16 kinds: 7 steps an epoch.
NETWORK = {"image_size": 32, "patch_size": 8, "width": 64, "depth": 1, "decoder_depth": 1}

NETWORK |= {"vocabulary": 16, "code_width": 8}

TRAINING = {"epochs": 4, "batch_size": 8, "peak_learning_rate": 2e-3, "warmup_epochs": 0, "weight_decay": 1e-4}

TRAINING |= {"precision": "fp32", "report_steps": 1}


@dataclass(frozen=True)
class Photos:
    """An image index, its source, and a tiny CLIP to be taught by."""

    images: Artifact
    source: ImageSourceOptions
    clip: Path


def indexed(photos: Path, folder: Path) -> Photos:
    clip = folder / "clip"
    if not clip.exists():
        write_tiny_clip(clip)
    source = ImageSourceOptions(path=str(photos))
    made = index_images(source, workspace=Workspace(Settings(data_root=folder / "index", device="cpu")))
    return Photos(made.artifact, source, clip)


def options_for(clip: Path, **changed: object) -> FitVQKDOptions:
    teacher = ClipOptions(model=f"local-dir:{clip}", dilate_last_stage=True, precision="fp32")
    parts = {"network": NETWORK, "training": TRAINING, "codebook": {"decay": 0.9}}
    for name, of_part in parts.items():
        changed[name] = {**of_part, **changed.get(name, {})}  # type: ignore[dict-item]
    return FitVQKDOptions.model_validate({"teacher": teacher, "smallest_crop": 0.5, **changed})


def fit(
    photos: Photos,
    root: Path,
    *,
    decoding: DecodingOptions | None = None,
    run: TrackedRun | None = None,
    changed: Mapping[str, object] | None = None,
    **settings: object,
) -> StageResult:
    machine = Settings(**{"data_root": root, "device": "cpu", "workers": 0, **settings})
    return fit_vqkd(
        options_for(photos.clip, **(changed or {})),
        images=photos.images,
        source=photos.source,
        decoding=decoding or DecodingOptions(),
        workspace=Workspace(machine, run or NoTracking()),
    )
