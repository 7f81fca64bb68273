"""Tensors by name: read from a checkpoint file or written to one, and compared with those that a network has."""

import argparse
import errno
import logging
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from models.errors import ModelError, in_short

Shapes = Mapping[str, torch.Size]
COMPILED, PARALLEL = "_orig_mod.", "module."  # what torch.compile and DistributedDataParallel put into names
logger = logging.getLogger(__name__)


def read_checkpoint(path: Path, *, under: Sequence[str] = ("state_dict",)) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, a state dict, or a {"state_dict": ...} as training scripts save it.

    Nothing in the file is executed (`weights_only=True`); of pickled objects `argparse.Namespace` is allowed. What
    wrappers of training put into the names is taken out and said: "module." before them (DistributedDataParallel),
    "_orig_mod." anywhere (torch.compile).

    Args:
        under: the keys at which a script may have put the state dict, the first that is there counts.

    Raises:
        ModelError: the file is damaged, needs code to be read, or holds no tensors by name.
    """
    return read_with_arguments(path, under=under)[0]


def read_with_arguments(
    path: Path, *, under: Sequence[str] = ("state_dict",)
) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Read as `read_checkpoint` does, and also the arguments ("args") that a training script may have put into the
    file, which tell what no tensor does; empty where there are none.

    Raises:
        ModelError: as `read_checkpoint`.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # as training scripts save their arguments
            loaded = _load(path)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: not plain tensors ({in_short(error)}); a damaged file, or one that runs code when it is read: "
            "save the state dict alone"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ModelError(f"{path}: not a readable checkpoint ({in_short(error)}); copy it again") from error
    state = next((loaded[key] for key in under if key in loaded), loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise ModelError(f"{path}: expected tensors by name (a state dict), found {_describe(state)}")
    arguments = loaded.get("args") if isinstance(loaded, Mapping) and state is not loaded else None
    said = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    return _unwrapped(state, source=path), said if isinstance(said, Mapping) else {}


def _unwrapped(state: Mapping[str, Tensor], *, source: Path) -> dict[str, Tensor]:
    bare: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if (plain := _without_wrappers(name)) in bare:
            raise ModelError(f"{source}: holds {plain} more than once, as {name} too; save the weights of one network")
        bare[plain] = tensor
    if wrapped := next((name for name in state if name not in bare), ""):
        logger.info("%s: %s and others are read as %s and so on", source, wrapped, _without_wrappers(wrapped))
    return bare


def _without_wrappers(name: str) -> str:
    name = name.replace(COMPILED, "")
    while name.startswith(PARALLEL):
        name = name.removeprefix(PARALLEL)
    return name


def write_checkpoint(path: Path, state: Mapping[str, object]) -> None:
    """Call `torch.save`, which reports a full disk by a RuntimeError about positions in a file.

    Raises:
        OSError: the disk does not take it.
    """
    try:
        torch.save(dict(state), path)
    except RuntimeError as error:
        if "inline_container" in str(error) or "iostream" in str(error):
            raise OSError(errno.EIO, "cannot be written; the disk may be full", str(path)) from error
        raise


def write_safetensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors, equal ones as equal bytes. Raises OSError when the disk does not take them."""
    # Not save_file, which creates files that only their owner may read, and has an error of its own for a full disk.
    # The entry "format" is what transformers looks for; a second entry would be written in random order.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    path.write_bytes(save(tensors, metadata={"format": "pt"}))


def _load(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    return torch.load(path, map_location="cpu", weights_only=True)


def _describe(found: object) -> str:
    if isinstance(found, Mapping):
        others = (str(key) for key, value in found.items() if not isinstance(value, Tensor))
        return f"a mapping with {_few(others, at_most=3)}"
    return f"a {type(found).__name__}"


def _few(names: Iterable[str], at_most: int) -> str:
    names = list(names)
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tensor.shape for name, tensor in state.items()}


def misfit(found: Shapes, wanted: Shapes, *, at_most: int = 1) -> str:
    """Say how `found` differs from `wanted`, naming the first tensors of each kind; "" where they agree."""
    problems = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} ({list(found[name])} instead of {list(shape)})"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ],
    }
    return "; ".join(f"{kind}: {_few(names, at_most)}" for kind, names in problems.items() if names)
