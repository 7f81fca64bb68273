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

from models.objectives import OBJECTIVES
from models.objectives.colours import objective_colour
from models.options import Options
from models.vit.options import BackboneOptions
from pipeline.data.stored_squares import squares_of_tokens
from pipeline.data.token_rows import Splits, choose_rows, open_tokens
from pipeline.engine.fingerprint import defining_options
from pipeline.engine.stage import Made, Source, Stage, recipe_of
from pipeline.engine.tracker import TrackedRun
from pipeline.engine.words import counted
from pipeline.stages.records import PretrainRecord
from pipeline.training.history import last_of_curves
from pipeline.training.options import TrainingOptions
from pipeline.training.pretraining_options import PretrainFields, PretrainOptions
from storage.artifact import Artifact, Built, Recipe
from storage.image_index import ImageIndex
from storage.token_store import TokenStore

BACKBONE_FILES = ("config.json", "model.safetensors")
logger = logging.getLogger("mapet.stages")


@dataclass(frozen=True)
class Pretrain(PretrainFields, Stage):
    """Pre-train a backbone on a token store."""

    NAME: ClassVar[str] = PretrainRecord.STAGE
    COMPARED: ClassVar[bool] = True

    @property
    def spared_by(self) -> tuple[Source, ...]:
        return self.squares

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
        from pipeline.training.launch import train_together
        from pipeline.training.loop import CHECKPOINTS
        from pipeline.training.pretraining import build_for_tokens, train_on_tokens

        options, tokens = self.options, made[self.tokens]
        store = open_tokens(tokens, made[self.images.index])
        index = ImageIndex.read(made[self.images.index].path)
        splits = choose_rows(index, store, train=options.train_split, val=options.val_split)
        network = build_for_tokens(self, store)
        left_out = f", {counted(splits.invalid, 'image')} without tokens left out" if splits.invalid else ""
        logger.info(
            "pretrain: %s predicts %d of %d patches (%.1f %%), %s%s",
            *(options.objective, network.predicted, network.patches, 100 * network.predicted / network.patches),
            *(counted(len(splits.train), "training image"), left_out),
        )
        run.params({"targets": network.predicted, "patches": network.patches, "vocabulary": store.vocabulary})
        run.tags(_tags(options, self.backbone, store, tokens))
        store.decoded(made.settings.layout.decoded_tokens, tokens.digest)  # once, before the processes want it
        kept = next((made[one] for one in self.squares if one in made), None)
        kept = squares_of_tokens(kept, tokens, made[self.images.index])
        work = partial(train_on_tokens, self, made.portable(*self.takes), folder, kept)
        notes = train_together(work, made.settings, run, what=f"pretrain {options.objective}")
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        return _record(folder, targets=network.predicted, patches=network.patches, splits=splits).built(notes)

    def label(self, made: Made) -> str:
        return f"pretrain {self.options.objective} {self.backbone.name}"

    def distinction(self, made: Made) -> str:
        tokenizer = TokenStore(made[self.tokens].path).attributes["tokenizer"]
        return f"{tokenizer}, {self.training.length.words}, seed {self.options.seed}"


def pretraining_definition(
    options: PretrainOptions, objective: Options, backbone: BackboneOptions, training: TrainingOptions
) -> dict[str, Any]:
    """Return what defines the weights beside images and tokens."""
    revision = OBJECTIVES[options.objective].revision
    return {
        **defining_options(options),
        "objective_options": defining_options(objective),
        "backbone": defining_options(backbone),
        "training": defining_options(training),
        # Named from the second on: a change of one objective is no change of the others.
        **({"objective_revision": revision} if revision > 1 else {}),
    }


def _record(folder: Path, *, targets: int, patches: int, splits: Splits) -> PretrainRecord:
    return PretrainRecord(
        targets=targets,
        patches=patches,
        train_images=len(splits.train),
        val_images=len(splits.val),
        images_without_tokens=splits.invalid,
        **last_of_curves(folder, _SUMMARISED),
    )


_SUMMARISED = ("loss", "token_loss", "token_accuracy", "val_token_loss", "val_token_accuracy")


def _tags(options: PretrainOptions, backbone: BackboneOptions, store: TokenStore, tokens: Artifact) -> dict[str, str]:
    return {
        "objective": options.objective,
        "backbone": backbone.name,
        "tokenizer": str(store.attributes["tokenizer"]),
        "tokens": tokens.fingerprint,
        "mlflow.runColor": objective_colour(options.objective),
    }
