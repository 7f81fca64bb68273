"""The tensors of a CLIP, or of its trunk alone: checked key by key, or drawn from a seed; and their digest.

A trunk is the image tower of a CLIP as patches need it (Radford et al. 2021, arXiv:2103.00020, 2.4): a Vision
Transformer, or a ModifiedResNet without its attention pooling.
`num_batches_tracked`, which BatchNorm only reads while training, is neither required nor digested.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.weights.digests import counts, digest_below, network_tensors
from models.weights.state_files import misfit

TOWER = "visual."  # what a CLIP checkpoint puts before the names of its image tower


def is_torchscript(path: Path) -> bool:
    """Return whether `path` is a TorchScript archive, the form in which OpenAI publishes CLIP."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def fill_trunk(trunk: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copy the image tower of a CLIP state dict into `trunk`: every tensor must be there and fit, none be left over.

    Args:
        state: names as in open_clip, `visual.layer4...`; other towers and the attention pooling are ignored.
        source: what the error message calls the checkpoint.

    Raises:
        ModelError: names the first tensors that are missing, unexpected or of another shape.
    """
    given = {name.removeprefix(TOWER): value for name, value in state.items() if name.startswith(TOWER)}
    given = {name: value for name, value in given.items() if not name.startswith("attnpool.")}
    _fill(trunk, given, prefix=TOWER, source=source)


def fill_clip(clip: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copy a whole CLIP, both towers, as `fill_trunk` copies a part of it.

    Raises:
        ModelError: names the first tensors that are missing, unexpected or of another shape.
    """
    if state and all(name.startswith(TOWER) for name in state):
        raise ModelError(f"{source} has the image tower alone; a checkpoint with the text tower is needed")
    _fill(clip, state, prefix="", source=source)


def _fill(module: nn.Module, state: Mapping[str, Tensor], *, prefix: str, source: str) -> None:
    given, wanted = {name: value for name, value in state.items() if counts(name)}, network_tensors(module)
    problems = misfit(
        {prefix + name: tensor.shape for name, tensor in given.items()},
        {prefix + name: tensor.shape for name, tensor in wanted.items()},
        at_most=3,
    )
    if problems:
        raise ModelError(f"{source} does not fit this architecture: {problems}; choose the model it was made for")
    _copy(wanted, given)


def draw_trunk(trunk: nn.Module, *, seed: int = 0) -> None:
    """Fill `trunk` from a generator of its own: weights for tests, the same on every machine.

    The library's initialisation zeroes each residual branch, so that two thirds of a tower would not influence the
    features; here every tensor does, and a branch is weak enough (0.3) for 64 blocks to stay far inside float16. A
    Vision Transformer needs no such care: its last norm brings every feature to the same scale.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, tensor in network_tensors(trunk).items():
        if tensor.ndim == 4:
            drawn[name] = torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
        elif tensor.ndim == 2:
            drawn[name] = torch.randn(tensor.shape, generator=generator) * tensor.shape[1] ** -0.5
        elif name.endswith(("weight", "running_var")):
            scale = 0.3 if name.endswith("bn3.weight") and name.startswith("layer") else 1.0
            drawn[name] = scale * (0.75 + 0.5 * torch.rand(tensor.shape, generator=generator))
        else:
            drawn[name] = 0.1 * torch.randn(tensor.shape, generator=generator)
    _copy(network_tensors(trunk), drawn)


def _copy(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(values[name])


def trunk_digest(trunk: nn.Module, *, dilated: bool) -> str:
    """Hash names, shapes, dtypes and bytes of the trunk's tensors, and the dilation, by SHA-256.

    Equal for equal values: it knows neither the file they came from nor the form (float16, safetensors) it had.
    """
    return digest_below(f"dilated={dilated}", trunk)
