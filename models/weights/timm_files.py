"""Networks as directories that timm reads: backbones, and classifiers on top of them.

A directory holds `config.json` and `model.safetensors` as timm lays out a model of the Hugging Face hub, with timm's
own tensor names, so that `timm.create_model(f"local-dir:{folder}", pretrained=True)` needs timm (1.0.16 or newer) and
nothing of this project, and the directory can be uploaded as it is. `num_classes=1000, global_pool="avg"` beside it
gives the paper's fine-tuning network: mean of the patches, then a fresh norm and a fresh head; the final norm of
pre-training is left out.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor

from models.errors import ModelError, in_short
from models.vit.options import SHAPES, BackboneOptions
from models.weights.state_files import misfit, read_checkpoint, shapes_of, write_safetensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HEAD = "head."  # where a Vision Transformer of timm keeps its classifier

Pixel = tuple[float, float, float]


def save_backbone(
    backbone: VisionTransformer,
    options: BackboneOptions,
    folder: Path,
    *,
    mean: Pixel,
    std: Pixel,
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    label_names: Sequence[str] = (),
    extra: Mapping[str, object] | None = None,
) -> None:
    """Write `backbone` to `folder`, with its classifier if it has one; the same weights give the same bytes.

    Args:
        options: what the backbone was built from; the stochastic depth is a choice of training and is not written.
        mean, std, interpolation: how images were normalised and scaled, for `timm.data.resolve_model_data_config`.
        crop_pct: side of the central crop over the shorter side of the scaled image, in evaluation.
        label_names: what the classes are called, in the order of the head's rows; none: not known.
        extra: where the weights come from (objective, digests, ...), under `mapet` in config.json.

    Raises:
        ModelError: `options` describe another network.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    blank = blank_network(options, num_classes=backbone.num_classes, global_pool=backbone.global_pool)
    problems = misfit(shapes_of(state), shapes_of(blank.state_dict()))
    heads = {module.num_heads for module in backbone.modules() if isinstance(module, Attention)}
    if not problems and heads != {SHAPES[options.name].heads}:  # which no tensor's shape tells
        problems = f"{sorted(heads)} attention heads instead of {SHAPES[options.name].heads}"
    if problems:
        raise ModelError(f"the options ({options.name}) describe another network than the one to save: {problems}")
    data = {"mean": mean, "std": std, "interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": "center"}
    config = _config(backbone, options, data) | ({} if extra is None else {"mapet": dict(extra)})
    config |= {"label_names": list(label_names)} if label_names else {}
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS, state)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_backbone(folder: Path, *, drop_path_rate: float = 0.0) -> VisionTransformer:
    """Load the backbone in `folder`, on the CPU and in training mode, as timm does; a classifier's head is left out.

    Args:
        folder: a directory of `save_backbone`, or of timm for any of its plain Vision Transformers.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.

    Raises:
        ModelError: a file is missing or damaged, or the weights are not those of the network that config.json names.
    """
    return _load(folder, drop_path_rate=drop_path_rate, num_classes=0)


def load_classifier(folder: Path, *, drop_path_rate: float = 0.0) -> VisionTransformer:
    """Load the network in `folder` with its head, otherwise as `load_backbone`.

    Raises:
        ModelError: as `load_backbone`, or the directory holds a backbone without a head.
    """
    model = _load(folder, drop_path_rate=drop_path_rate, num_classes=None)
    if not model.num_classes:
        raise ModelError(f"{folder} holds a backbone without a classifier; fine-tune it first")
    return model


def _config(backbone: VisionTransformer, options: BackboneOptions, data: Mapping[str, object]) -> dict[str, object]:
    """Return what timm keeps beside weights; `pretrained_cfg` may hold only fields of timm's class of that name."""
    size = options.image_size
    return {
        "architecture": _architecture(options),
        "num_classes": backbone.num_classes,
        "num_features": backbone.num_features,
        "global_pool": backbone.global_pool,
        "model_args": _model_args(options, global_pool=backbone.global_pool),
        "pretrained_cfg": {
            **data,
            "input_size": [3, size, size],
            "fixed_input_size": True,
            "pool_size": None,
            "num_classes": backbone.num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": HEAD.removesuffix("."),
            "custom_load": False,
        },
    }


def _stock(options: BackboneOptions) -> str:
    """Name the shape that timm has an architecture for: the demo's is a ViT-T with other arguments."""
    return "vit_tiny" if options.name == "vit_demo" else options.name


def _architecture(options: BackboneOptions) -> str:
    return f"{_stock(options)}_patch16_224"


def _model_args(options: BackboneOptions, *, global_pool: str) -> dict[str, Any]:
    """Return what timm's architecture must be told, beyond its name, to be this network."""
    shape, stock = SHAPES[options.name], SHAPES[_stock(options)]
    wanted_and_default = {
        "img_size": (options.image_size, 224),
        "patch_size": (options.patch_size, 16),
        "embed_dim": (shape.width, stock.width),
        "depth": (shape.depth, stock.depth),
        "num_heads": (shape.heads, stock.heads),
        "init_values": (options.layer_scale or None, None),
        "global_pool": (global_pool, "token"),
    }
    return {name: wanted for name, (wanted, default) in wanted_and_default.items() if wanted != default}


def blank_network(options: BackboneOptions, *, num_classes: int, global_pool: str) -> VisionTransformer:
    """Build the network without storage: nothing is drawn, the random state stays as it is."""
    arguments = _model_args(options, global_pool=global_pool)
    model = timm.create_model(_architecture(options), num_classes=num_classes, device="meta", **arguments)
    assert isinstance(model, VisionTransformer)
    return model


def filled(blank: VisionTransformer, state: Mapping[str, Tensor]) -> VisionTransformer:
    model = blank.to_empty(device="cpu")
    model.load_state_dict(state, strict=True)
    return model


def _load(folder: Path, *, drop_path_rate: float, num_classes: int | None) -> VisionTransformer:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: {name} is missing; expected a directory with {CONFIG} and {WEIGHTS}")
    blank = _named_in_config(folder, drop_path_rate=drop_path_rate, num_classes=num_classes)
    state = read_checkpoint(folder / WEIGHTS)
    if not blank.num_classes:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(HEAD)}
    if problems := misfit(shapes_of(state), shapes_of(blank.state_dict())):
        raise ModelError(f"{folder / WEIGHTS} does not fit the network that {CONFIG} names: {problems}")
    return filled(blank, state)


def _named_in_config(folder: Path, *, drop_path_rate: float, num_classes: int | None) -> VisionTransformer:
    try:
        model = timm.create_model(
            f"local-dir:{folder}", num_classes=num_classes, drop_path_rate=drop_path_rate, device="meta"
        )
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
        raise ModelError(f"{folder / CONFIG} names no network that timm can build ({in_short(error)})") from error
    if not isinstance(model, VisionTransformer):
        raise ModelError(f"{folder / CONFIG} names a {type(model).__name__}; expected a VisionTransformer")
    return model
