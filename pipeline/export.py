"""Directories that timm loads: from a pre-training of ours, or from a checkpoint that the paper's authors released."""

import shutil
from collections.abc import Callable
from pathlib import Path

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from models.official_checkpoint import import_official_checkpoint
from models.timm_files import save_backbone
from pipeline.errors import PipelineError
from pipeline.pretrain import BACKBONE_FILES
from pipeline.words import counted
from storage.artifact import read_intact

_OFFICIAL_CROP = 0.9  # of the released evaluation


def export_backbone(artifact: Path, to: Path) -> str:
    """Copy the backbone of a `pretrain` artifact; returns what it is, in words.

    Raises:
        PipelineError: `to` exists.
        ArtifactMissing, ArtifactDamaged: there is no artifact of `pretrain`, or not what was published.
    """
    made = read_intact(artifact, stage="pretrain", remedy="run the pre-training again, which rebuilds it")

    def fill(folder: Path) -> None:
        for name in BACKBONE_FILES:
            shutil.copyfile(made.path / name, folder / name)

    _write(to, fill)
    options = made.recipe["options"]
    length = counted(made.summary["steps"], "step")
    return f"{options['backbone']['name']} pre-trained with {options['objective']} ({length})"


def import_official(checkpoint: Path, to: Path) -> str:
    """Write a released fine-tuned classifier as a timm directory; returns what it is, in words.

    Raises:
        PipelineError: `to` exists.
        ModelError: the file is not such a checkpoint; the first key that does not fit is named.
    """
    imported = import_official_checkpoint(checkpoint)
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    _write(
        to,
        lambda folder: save_backbone(
            imported.model, imported.options, folder, mean=mean, std=std, crop_pct=_OFFICIAL_CROP
        ),
    )
    return f"{imported.options.name} with a head of {counted(imported.model.num_classes, 'class', 'classes')}"


def _write(to: Path, fill: Callable[[Path], None]) -> None:
    """The whole directory or nothing."""
    if to.exists():
        raise PipelineError(f"{to} exists; name a directory that does not")
    to.parent.mkdir(parents=True, exist_ok=True)
    beside = to.with_name(f"{to.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    fill(beside)
    beside.rename(to)
