"""The released MaPeT classifiers (`vit_standard_{tiny,small,base}_*`, github.com/aimagelab/MaPeT) as timm's networks.

Their attention has one linear layer for queries, D -> D, and one for keys and values, D -> 2D with the keys first;
below each other they are the rows of timm's `qkv`, and every other name is timm's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.errors import ModelError
from models.vit.options import BackboneOptions
from models.weights.state_files import Shapes, misfit, read_with_arguments, shapes_of
from models.weights.timm_files import blank_network, filled

LAYER_SCALE = 0.1  # what the released training and evaluation pass as init_values


@dataclass(frozen=True)
class OfficialClassifier:
    """A released classifier as timm's network: mean of the patches, norm, head; and the options of its backbone.

    `seen`: mean, std and interpolation of its images, as far as the arguments in its file name some.
    """

    model: VisionTransformer
    options: BackboneOptions
    seen: Mapping[str, Any]


def import_official_checkpoint(path: Path) -> OfficialClassifier:
    """Read a classifier from a checkpoint of the released MaPeT code, on the CPU.

    Shape (tiny, small, base), patch size, image size and number of classes are read off the tensors. Nothing in the
    file is executed: of its pickled objects only `argparse.Namespace`, which holds the arguments, is allowed. Weights
    of an exponential moving average (`state_dict_ema`) are ignored, as the released evaluation does by default.

    Raises:
        ModelError: the file cannot be read, or its tensors are not exactly those of such a classifier; the first
            tensor that is missing, unexpected or of another shape is named as the file names it.
    """
    state, arguments = read_with_arguments(path)
    options = _official_options(state, source=path)
    classes = _official_tensor(state, "head.weight", rank=2, source=path).shape[0]
    model = blank_network(options, num_classes=classes, global_pool="avg")
    if problems := misfit(shapes_of(state), _official_shapes(shapes_of(model.state_dict()))):
        raise ModelError(f"{path} is not a released classifier of the shape {options.name}: {problems}")
    return OfficialClassifier(filled(model, _joined_attention(state)), options, _seen(arguments))


def _seen(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Read how its images were prepared, as far as the arguments of its training tell.

    What timm's training script is not told, None or an empty word, it takes from the architecture; the interpolation
    "random" is a choice for training alone.
    """
    told = {name: arguments.get(name) for name in ("mean", "std", "interpolation")}
    told["interpolation"] = arguments.get("interpolation") if arguments.get("interpolation") != "random" else None
    return {name: tuple(value) if isinstance(value, list) else value for name, value in told.items() if value}


def _official_tensor(state: Mapping[str, Tensor], name: str, *, rank: int, source: Path) -> Tensor:
    tensor = state.get(name)
    if tensor is None or tensor.ndim != rank:
        found = "is missing" if tensor is None else f"has the shape {list(tensor.shape)}"
        raise ModelError(f"{source}: {name} {found}; expected a classifier of the released MaPeT code")
    return tensor


def _official_options(state: Mapping[str, Tensor], *, source: Path) -> BackboneOptions:
    """Read width and patch size off the patch embedding, the image size off the number of positions."""
    width, _, _, patch_size = _official_tensor(state, "patch_embed.proj.weight", rank=4, source=source).shape
    patches = _official_tensor(state, "pos_embed", rank=3, source=source).shape[1] - 1
    released: dict[int, Literal["vit_tiny", "vit_small", "vit_base"]]
    released = {192: "vit_tiny", 384: "vit_small", 768: "vit_base"}
    grid = math.isqrt(max(patches, 0))
    if width not in released or grid < 1 or grid**2 != patches:
        raise ModelError(
            f"{source}: a network {width} wide for {patches} patches was never released; expected a width of "
            f"{', '.join(map(str, released))} and a square number of patches"
        )
    return BackboneOptions(
        name=released[width],
        image_size=grid * patch_size,
        patch_size=patch_size,
        drop_path_rate=0.0,
        layer_scale=LAYER_SCALE,
    )


def _official_shapes(timm_shapes: Shapes) -> Shapes:
    """Translate timm's shapes into the released layout: a third of the rows of `qkv` are `q`, the others `kv`."""
    official: dict[str, torch.Size] = {}
    for name, shape in timm_shapes.items():
        if ".attn.qkv." in name:
            rows = shape[0] // 3
            official[name.replace(".qkv.", ".q.")] = torch.Size((rows, *shape[1:]))
            official[name.replace(".qkv.", ".kv.")] = torch.Size((2 * rows, *shape[1:]))
        else:
            official[name] = shape
    return official


def _joined_attention(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    joined: dict[str, Tensor] = {}
    for name, tensor in official.items():
        if ".attn.q." in name:
            joined[name.replace(".q.", ".qkv.")] = torch.cat([tensor, official[name.replace(".q.", ".kv.")]])
        elif ".attn.kv." not in name:
            joined[name] = tensor
    return joined
