"""A process's part in a pre-training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from models.objectives import build_objective
from models.objectives.base import Objective
from models.vit.backbones import build_backbone
from models.vit.options import BackboneOptions
from models.weights.timm_files import save_backbone
from pipeline.data.known_checksums import open_unchanged
from pipeline.data.token_images import TokenImages
from pipeline.data.token_rows import choose_rows, open_tokens
from pipeline.engine.errors import PipelineError
from pipeline.engine.processes import Processes
from pipeline.engine.stage import Made
from pipeline.training.loop import Reporter, Trainer
from pipeline.training.pretraining_options import PretrainFields
from pipeline.training.token_prediction import TokenPrediction, pretraining_square
from storage.artifact import Artifact
from storage.image_index import ImageIndex
from storage.square_store import SquareStore
from storage.token_store import TokenStore

OBJECTIVE_FILE = "objective.safetensors"


def train_on_tokens(
    stage: PretrainFields,
    made: Made,
    folder: Path,
    squares: Artifact | None,
    processes: Processes,
    reporter: Reporter,
) -> dict[str, Any]:
    """Do one process's part. The first one writes the result into the folder; returns notes on how it went. `squares`:
    of all images that have tokens, if they are kept."""
    options, images, tokens = stage.options, made[stage.images.index], made[stage.tokens]
    store, index = open_tokens(tokens, images), ImageIndex.read(images.path)
    settings, square = made.settings.of_one_process(), pretraining_square(stage.backbone.image_size)
    network = build_for_tokens(stage, store)
    network.head_rows = settings.head_rows or None
    network.backbone.set_grad_checkpointing(settings.gradient_checkpointing)
    feed = TokenImages(
        index,
        open_unchanged(stage.images.source_in(made), images, len(index), settings.layout, tokens),
        store.decoded(settings.layout.decoded_tokens, tokens.digest),
        choose_rows(index, store, train=options.train_split, val=options.val_split),
        preprocessing=square,
        decoding=options.decoding,
        seed=options.seed,
        settings=settings,
        squares=None if squares is None else SquareStore.open(squares.path),
    )
    trainer = Trainer(
        TokenPrediction(network, square, jitter=options.colour_jitter),
        feed,
        stage.training,
        seed=options.seed,
        folder=folder,
        settings=settings,
        processes=processes,
        reporter=reporter,
    )
    speed = trainer.run()
    origin = {"objective": options.objective, "tokens": tokens.digest, **stage.training.length.record}
    processes.by_first(lambda: _save(network, stage.backbone, origin, folder))
    return speed


def build_for_tokens(stage: PretrainFields, store: TokenStore) -> Objective:
    """Build the objective with its backbone, both new. Raises PipelineError when an image does not have one token for
    each patch."""
    options, network = stage.options, build_backbone(stage.backbone, seed=stage.options.seed)
    rows, columns = store.attributes["grid"]
    if network.patch_embed.grid_size != (rows, columns):
        have = "{} x {}".format(*network.patch_embed.grid_size)
        raise PipelineError(
            f"{store.path}: an image has {rows} x {columns} tokens, the backbone cuts it into {have} patches; set "
            f"backbone.image_size to {rows} times backbone.patch_size"
        )
    return build_objective(options.objective, network, store.vocabulary, stage.objective, seed=options.seed)


def _save(objective: Objective, backbone: BackboneOptions, origin: Mapping[str, Any], folder: Path) -> None:
    square, extra = pretraining_square(backbone.image_size), {"pretraining": origin}
    save_backbone(objective.backbone, backbone, folder, mean=square.mean, std=square.std, extra=extra)
    rest = {name: weight for name, weight in objective.state_dict().items() if not name.startswith("backbone.")}
    data = save({name: weight.cpu().contiguous() for name, weight in rest.items()})
    (folder / OBJECTIVE_FILE).write_bytes(data)  # whose errors are OSErrors: a full disk is no bug
