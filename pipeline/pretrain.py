"""Stage `pretrain`: a backbone learns to predict the tokens of patches that an objective hides from it.

The artifact holds the backbone as a directory that timm loads (`config.json`, `model.safetensors`), everything else
that was trained (`objective.safetensors`: mask token, head, ...) and the curves (`history.jsonl`).
"""

import logging
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from safetensors.torch import save

from models.backbones import BackboneOptions, build_backbone
from models.objectives import OBJECTIVES, build_objective
from models.objectives.base import Objective
from models.options import Options, PathText, Seed
from models.timm_files import save_backbone
from pipeline.data.decode import DecodePreset
from pipeline.data.known_checksums import open_unchanged
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.data.token_images import Splits, TokenImages, choose_rows, open_tokens
from pipeline.errors import PipelineError
from pipeline.fingerprint import SETTING, defining_options, recipe
from pipeline.objective_colours import objective_colour
from pipeline.settings import Settings
from pipeline.tracker import TrackedRun
from pipeline.training.history import last_of_curves
from pipeline.training.launch import train_together
from pipeline.training.loop import CHECKPOINTS, Reporter, Trainer
from pipeline.training.options import TrainingOptions
from pipeline.training.processes import Processes
from pipeline.training.token_prediction import TokenPrediction, pretraining_square
from pipeline.words import counted
from pipeline.workspace import StageResult, Workspace
from storage.artifact import Artifact, Built
from storage.image_index import ImageIndex
from storage.token_store import TokenStore

STAGE = "pretrain"
VERSION = 1
BACKBONE_FILES = ("config.json", "model.safetensors")
OBJECTIVE_FILE = "objective.safetensors"
logger = logging.getLogger("mapet.stages")

ObjectiveName = Literal[*OBJECTIVES]  # type: ignore[valid-type]


class PretrainOptions(Options):
    """What is learned from which images."""

    objective: ObjectiveName = "mapet"
    """What is hidden and predicted; its own options are those of `objectives.<name>`."""

    tokens: PathText = Field(default="", json_schema_extra=SETTING)
    """Folder of a `tokenize_images` artifact to train on; empty: the tokens that the sections above describe, built
    where they are not there yet."""

    train_split: str = "train"
    """Split whose images are trained on."""

    val_split: str = "val"
    """Split on which the loss is measured too; it may be empty."""

    colour_jitter: float = Field(default=0.4, ge=0, le=1)
    """Strength of random brightness, contrast and saturation. Nothing moves a pixel: tokens would no longer fit."""

    decoding: DecodePreset = "fast"
    """How images are resized: `fast` (8-bit, half the time) or `exact` (as the tokens' encoder saw them)."""

    seed: Seed = 0
    """Of initial weights, order of the images, corruption, stochastic depth and jitter."""


@dataclass(frozen=True)
class PretrainJob:
    """Everything that one process needs to know to train its part."""

    options: PretrainOptions
    objective: Options
    backbone: BackboneOptions
    training: TrainingOptions
    source: ImageSourceOptions
    images: Artifact
    tokens: Artifact
    folder: Path
    settings: Settings


def pretrain(
    options: PretrainOptions,
    *,
    objective: Options,
    backbone: BackboneOptions,
    training: TrainingOptions,
    images: Artifact,
    source: ImageSourceOptions,
    tokens: Artifact,
    workspace: Workspace,
) -> StageResult:
    """Pre-train a backbone on a token store, or find it trained.

    Args:
        objective: the options of `options.objective`.
        images: the image index that the tokens were made for; `source` has the images themselves.

    Raises:
        StoreMismatch: the tokens belong to other images.
        PipelineError: tokens and backbone cut images into different numbers of patches, there are too few images for
            a step, an image changed since it was indexed, or the loss is not finite.
        ModelError: backbone and objective do not fit.
    """
    store = open_tokens(tokens, images)
    splits = choose_rows(ImageIndex.read(images.path), store, train=options.train_split, val=options.val_split)
    network = _build_objective(options, objective, backbone, store)
    definition = pretraining_definition(options, objective, backbone, training)
    made_from = recipe(STAGE, VERSION, definition, images=images.digest, tokens=tokens.digest)
    left_out = f", {counted(splits.invalid, 'image')} without tokens left out" if splits.invalid else ""
    logger.info(
        "pretrain: %s predicts %d of %d patches (%.1f %%), %s%s",
        *(options.objective, network.targets, network.patches, 100 * network.targets / network.patches),
        *(counted(len(splits.train), "training image"), left_out),
    )

    def build(folder: Path, run: TrackedRun) -> Built:
        run.params({"targets": network.targets, "patches": network.patches, "vocabulary": store.vocabulary})
        run.tags(_tags(options, backbone, store, tokens))
        parts = (options, objective, backbone, training, source, images, tokens)
        job = PretrainJob(*parts, folder=folder, settings=workspace.settings)
        store.decoded(workspace.settings.layout.decoded_tokens, tokens.digest)  # once, before the processes want it
        notes = train_together(
            partial(train_on_tokens, job), workspace.settings, run, what=f"pretrain {options.objective}"
        )
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        return Built(_summary(folder, network, splits), notes)

    label = f"pretrain {options.objective} {backbone.name}"
    distinction = f"{store.attributes['tokenizer']}, {training.length.words}, seed {options.seed}"
    return workspace.artifact(made_from, build, label=label, distinction=distinction, compared_with=STAGE)


def pretraining_definition(
    options: PretrainOptions, objective: Options, backbone: BackboneOptions, training: TrainingOptions
) -> dict[str, Any]:
    """What defines the weights beside images and tokens."""
    revision = OBJECTIVES[options.objective].revision
    return {
        **defining_options(options),
        "objective_options": defining_options(objective),
        "backbone": defining_options(backbone),
        "training": defining_options(training),
        # Named from the second on: a change of one objective is no change of the others.
        **({"objective_revision": revision} if revision > 1 else {}),
    }


def train_on_tokens(job: PretrainJob, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    """One process's part. The first one writes the result into the job's folder; returns notes on how it went."""
    store = open_tokens(job.tokens, job.images)
    settings, square = job.settings.of_one_process(), pretraining_square(job.backbone.image_size)
    index = ImageIndex.read(job.images.path)
    objective = _build_objective(job.options, job.objective, job.backbone, store)
    objective.head_rows = settings.head_rows or None
    objective.backbone.set_grad_checkpointing(settings.gradient_checkpointing)
    feed = TokenImages(
        index,
        open_unchanged(job.source, job.images, len(index), settings.layout, job.tokens),
        store.decoded(settings.layout.decoded_tokens, job.tokens.digest),
        choose_rows(index, store, train=job.options.train_split, val=job.options.val_split),
        preprocessing=square,
        decoding=job.options.decoding,
        seed=job.options.seed,
        settings=settings,
    )
    trainer = Trainer(
        TokenPrediction(objective, square, jitter=job.options.colour_jitter),
        feed,
        job.training,
        seed=job.options.seed,
        folder=job.folder,
        settings=settings,
        processes=processes,
        reporter=reporter,
    )
    speed = trainer.run()
    processes.by_first(lambda: _save(objective, job))
    return speed


def _build_objective(
    options: PretrainOptions, objective: Options, backbone: BackboneOptions, store: TokenStore
) -> Objective:
    network = build_backbone(backbone, seed=options.seed)
    rows, columns = store.attributes["grid"]
    if network.patch_embed.grid_size != (rows, columns):
        have = "{} x {}".format(*network.patch_embed.grid_size)
        raise PipelineError(
            f"{store.path}: an image has {rows} x {columns} tokens, the backbone cuts it into {have} patches; set "
            f"backbone.image_size to {rows} times backbone.patch_size"
        )
    return build_objective(options.objective, network, store.vocabulary, objective, seed=options.seed)


def _save(objective: Objective, job: PretrainJob) -> None:
    square = pretraining_square(job.backbone.image_size)
    origin = {"objective": job.options.objective, "tokens": job.tokens.digest, **job.training.length.record}
    backbone = objective.backbone
    save_backbone(backbone, job.backbone, job.folder, mean=square.mean, std=square.std, extra={"pretraining": origin})
    rest = {name: weight for name, weight in objective.state_dict().items() if not name.startswith("backbone.")}
    data = save({name: weight.cpu().contiguous() for name, weight in rest.items()})
    (job.folder / OBJECTIVE_FILE).write_bytes(data)  # whose errors are OSErrors: a full disk is no bug


def _summary(folder: Path, objective: Objective, splits: Splits) -> dict[str, Any]:
    """The last point of every curve, and what was trained on."""
    counts = {"train_images": len(splits.train), "val_images": len(splits.val), "images_without_tokens": splits.invalid}
    numbers = {"targets": objective.targets, "patches": objective.patches, **counts}
    return {**numbers, **last_of_curves(folder, _SUMMARISED)}


_SUMMARISED = ("loss", "token_loss", "token_accuracy", "val_token_loss", "val_token_accuracy")


def _tags(options: PretrainOptions, backbone: BackboneOptions, store: TokenStore, tokens: Artifact) -> dict[str, str]:
    return {
        "objective": options.objective,
        "backbone": backbone.name,
        "tokenizer": str(store.attributes["tokenizer"]),
        "tokens": tokens.fingerprint,
        "mlflow.runColor": objective_colour(options.objective),
    }
