"""Stage `pretrain`: a backbone learns to predict the tokens of patches that an objective hides from it.

The artifact holds the backbone as a directory that timm loads (`config.json`, `model.safetensors`), everything else
that was trained (`objective.safetensors`: mask token, head, ...) and the curves (`history.jsonl`).
"""

import logging
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save

from models.objectives import OBJECTIVES, build_objective
from models.objectives.base import Objective
from models.options import Options
from models.vit.backbones import build_backbone
from models.vit.options import BackboneOptions
from models.weights.timm_files import save_backbone
from pipeline.data.known_checksums import open_unchanged
from pipeline.data.token_images import Splits, TokenImages, choose_rows, open_tokens
from pipeline.engine.errors import PipelineError
from pipeline.engine.fingerprint import defining_options
from pipeline.engine.processes import Processes
from pipeline.engine.stage import Made, Source, Stage, recipe_of
from pipeline.engine.tracker import TrackedRun
from pipeline.engine.words import counted
from pipeline.objective_colours import objective_colour
from pipeline.stages.inputs import Images
from pipeline.stages.pretrain_options import PretrainOptions
from pipeline.training.history import last_of_curves
from pipeline.training.launch import train_together
from pipeline.training.loop import CHECKPOINTS, Reporter, Trainer
from pipeline.training.options import TrainingOptions
from pipeline.training.token_prediction import TokenPrediction, pretraining_square
from storage.artifact import Artifact, Built, Recipe
from storage.image_index import ImageIndex
from storage.token_store import TokenStore

BACKBONE_FILES = ("config.json", "model.safetensors")
OBJECTIVE_FILE = "objective.safetensors"
logger = logging.getLogger("mapet.stages")


@dataclass(frozen=True)
class Pretrain(Stage):
    """Pre-train a backbone on a token store.

    Attributes:
        objective: the options of `options.objective`.
        images: those that the tokens were made for.
    """

    NAME: ClassVar[str] = "pretrain"
    COMPARED: ClassVar[bool] = True

    options: PretrainOptions
    objective: Options
    backbone: BackboneOptions
    training: TrainingOptions
    images: Images
    tokens: Source

    def recipe(self, made: Made) -> Recipe:
        """Raises StoreMismatch when the tokens belong to other images."""
        images, tokens = made[self.images.index], made[self.tokens]
        open_tokens(tokens, images)
        definition = pretraining_definition(self.options, self.objective, self.backbone, self.training)
        return recipe_of(self, definition, images=images.digest, tokens=tokens.digest)

    def build(self, made: Made, folder: Path, run: TrackedRun) -> Built:
        """Train it.

        Raises:
            PipelineError: tokens and backbone cut images into different numbers of patches, there are too few images
                for a step, an image changed since it was indexed, or the loss is not finite.
            ModelError: backbone and objective do not fit.
        """
        options, tokens = self.options, made[self.tokens]
        store = open_tokens(tokens, made[self.images.index])
        index = ImageIndex.read(made[self.images.index].path)
        splits = choose_rows(index, store, train=options.train_split, val=options.val_split)
        network = _build_objective(options, self.objective, self.backbone, store)
        left_out = f", {counted(splits.invalid, 'image')} without tokens left out" if splits.invalid else ""
        logger.info(
            "pretrain: %s predicts %d of %d patches (%.1f %%), %s%s",
            *(options.objective, network.targets, network.patches, 100 * network.targets / network.patches),
            *(counted(len(splits.train), "training image"), left_out),
        )
        run.params({"targets": network.targets, "patches": network.patches, "vocabulary": store.vocabulary})
        run.tags(_tags(options, self.backbone, store, tokens))
        store.decoded(made.settings.layout.decoded_tokens, tokens.digest)  # once, before the processes want it
        work = partial(train_on_tokens, self, made.portable(*self.takes), folder)
        notes = train_together(work, made.settings, run, what=f"pretrain {options.objective}")
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        return Built(_summary(folder, network, splits), notes)

    def label(self, made: Made) -> str:
        return f"pretrain {self.options.objective} {self.backbone.name}"

    def distinction(self, made: Made) -> str:
        tokenizer = TokenStore(made[self.tokens].path).attributes["tokenizer"]
        return f"{tokenizer}, {self.training.length.words}, seed {self.options.seed}"


def pretraining_definition(
    options: PretrainOptions, objective: Options, backbone: BackboneOptions, training: TrainingOptions
) -> dict[str, Any]:
    """What defines the weights beside images and tokens."""
    revision = OBJECTIVES[options.objective].load().revision
    return {
        **defining_options(options),
        "objective_options": defining_options(objective),
        "backbone": defining_options(backbone),
        "training": defining_options(training),
        # Named from the second on: a change of one objective is no change of the others.
        **({"objective_revision": revision} if revision > 1 else {}),
    }


def train_on_tokens(
    stage: Pretrain, made: Made, folder: Path, processes: Processes, reporter: Reporter
) -> dict[str, Any]:
    """Do one process's part. The first one writes the result into the folder; returns notes on how it went."""
    options, images, tokens = stage.options, made[stage.images.index], made[stage.tokens]
    store, index = open_tokens(tokens, images), ImageIndex.read(images.path)
    settings, square = made.settings.of_one_process(), pretraining_square(stage.backbone.image_size)
    objective = _build_objective(options, stage.objective, stage.backbone, store)
    objective.head_rows = settings.head_rows or None
    objective.backbone.set_grad_checkpointing(settings.gradient_checkpointing)
    feed = TokenImages(
        index,
        open_unchanged(stage.images.source_in(made), images, len(index), settings.layout, tokens),
        store.decoded(settings.layout.decoded_tokens, tokens.digest),
        choose_rows(index, store, train=options.train_split, val=options.val_split),
        preprocessing=square,
        decoding=options.decoding,
        seed=options.seed,
        settings=settings,
    )
    trainer = Trainer(
        TokenPrediction(objective, square, jitter=options.colour_jitter),
        feed,
        stage.training,
        seed=options.seed,
        folder=folder,
        settings=settings,
        processes=processes,
        reporter=reporter,
    )
    speed = trainer.run()
    processes.by_first(lambda: _save(objective, stage, tokens, folder))
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


def _save(objective: Objective, stage: Pretrain, tokens: Artifact, folder: Path) -> None:
    square = pretraining_square(stage.backbone.image_size)
    origin = {"objective": stage.options.objective, "tokens": tokens.digest, **stage.training.length.record}
    extra = {"pretraining": origin}
    save_backbone(objective.backbone, stage.backbone, folder, mean=square.mean, std=square.std, extra=extra)
    rest = {name: weight for name, weight in objective.state_dict().items() if not name.startswith("backbone.")}
    data = save({name: weight.cpu().contiguous() for name, weight in rest.items()})
    (folder / OBJECTIVE_FILE).write_bytes(data)  # whose errors are OSErrors: a full disk is no bug


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
