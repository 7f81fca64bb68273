"""Directories that timm loads: a pre-trained backbone of ours, a fine-tuned classifier, or a checkpoint that the
paper's authors released."""

import shutil
from pathlib import Path

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from models.weights.official_checkpoint import import_official_checkpoint
from models.weights.timm_files import save_backbone
from pipeline.commands.destination import new_directory, require_new
from pipeline.engine.errors import PipelineError
from pipeline.engine.words import counted
from pipeline.stages.evaluate.evaluate import Evaluate
from pipeline.stages.evaluate.kept_classifier import CLASSIFIER
from pipeline.stages.evaluate.protocols import KEPT_BY
from pipeline.stages.pretrain import BACKBONE_FILES, Pretrain
from pipeline.stages.recipe_views import EvaluateRecipe, PretrainRecipe
from pipeline.stages.records import EvaluateRecord, PretrainRecord
from storage.artifact import Artifact, read_artifact, require_intact
from storage.errors import ArtifactMissing

_OFFICIAL_CROP = 0.9  # of the released evaluation


def export_weights(artifact: Path, to: Path) -> str:
    """Copy the backbone of a `pretrain` artifact, or the classifier of an `evaluate` one; returns what it is, in words.

    Raises:
        PipelineError: `to` exists or cannot be made, or the evaluation kept no classifier.
        ArtifactMissing, ArtifactDamaged: there is no artifact of these stages, or not what was published.
    """
    require_new(to, "directory")
    made = read_artifact(artifact.expanduser())
    if made.stage not in (Pretrain.NAME, Evaluate.NAME):
        raise ArtifactMissing(
            f"{artifact}: an artifact of {made.stage}, expected one of {Pretrain.NAME} or {Evaluate.NAME}"
        )
    holds, words = _classifier(made) if made.stage == Evaluate.NAME else _backbone(made)
    require_intact(made, remedy="run the same command again, which rebuilds it")
    with new_directory(to) as folder:
        for name in BACKBONE_FILES:
            shutil.copyfile(holds / name, folder / name)
    return words


def _backbone(made: Artifact) -> tuple[Path, str]:
    recipe, length = PretrainRecipe.of(made), counted(PretrainRecord.of(made).steps, "step")
    return made.path, f"{recipe.backbone.name} pre-trained with {recipe.objective} ({length})"


def _classifier(made: Artifact) -> tuple[Path, str]:
    recipe, record = EvaluateRecipe.of(made), EvaluateRecord.of(made)
    if recipe.protocol != KEPT_BY:
        raise PipelineError(f"{made.path}: an evaluation by {recipe.protocol}; only {KEPT_BY} makes a classifier")
    if not recipe.keep_weights:
        raise PipelineError(
            f"{made.path}: this evaluation kept no weights; run its command again with evaluate.keep_weights=true, "
            "which fine-tunes again and keeps them"
        )
    top1 = record.scores["top1"]
    return made.path / CLASSIFIER, f"classifier, {record.what}, top-1 {top1:.1f} % of its validation images"


def import_official(checkpoint: Path, to: Path) -> str:
    """Write a released fine-tuned classifier as a timm directory; returns what it is, in words.

    Raises:
        PipelineError: `to` exists or cannot be made.
        ModelError: the file is not such a checkpoint; the first key that does not fit is named.
    """
    require_new(to, "directory")
    imported = import_official_checkpoint(checkpoint)
    seen = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, **imported.seen}
    with new_directory(to) as folder:
        save_backbone(imported.model, imported.options, folder, crop_pct=_OFFICIAL_CROP, **seen)
    return f"{imported.options.name} with a head of {counted(imported.model.num_classes, 'class', 'classes')}"
