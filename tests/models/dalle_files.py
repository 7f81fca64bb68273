"""Small encoders of DALL-E with the names of the published ones."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.tokenizers.dalle import DalleShape

SMALL = DalleShape(hidden=8, vocabulary=64)


def published_shapes(hidden: int = 256, vocabulary: int = 8192) -> dict[str, list[int]]:
    """Return the 74 tensors of the published encoder; others in size when told."""
    shapes = {"blocks.input": [hidden, 3, 7, 7]}
    before = hidden
    for group, width in enumerate((hidden, 2 * hidden, 4 * hidden, 8 * hidden), start=1):
        for block in (1, 2):
            name, inner = f"blocks.group_{group}.block_{block}", width // 4
            shapes[f"{name}.res_path.conv_1"] = [inner, before, 3, 3]
            shapes[f"{name}.res_path.conv_2"] = [inner, inner, 3, 3]
            shapes[f"{name}.res_path.conv_3"] = [inner, inner, 3, 3]
            shapes[f"{name}.res_path.conv_4"] = [width, inner, 1, 1]
            if before != width:
                shapes[f"{name}.id_path"] = [width, before, 1, 1]
            before = width
    shapes["blocks.output.conv"] = [vocabulary, 8 * hidden, 1, 1]
    return {f"{name}.{kind}": shape if kind == "w" else shape[:1] for name, shape in shapes.items() for kind in "wb"}


def small_state() -> dict[str, Tensor]:
    """Return random weights under which every tensor moves the logits: the branches count for 1/64 of what they
    give."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in published_shapes(SMALL.hidden, SMALL.vocabulary).items():
        drawn = torch.randn(shape, generator=generator)
        state[name] = 0.3 * drawn if len(shape) == 1 else drawn * (2 / drawn[0].numel()) ** 0.5
        if name.endswith("conv_4.w"):
            state[name] *= 64
    return state


def images(count: int, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def write(path: Path, state: dict[str, Tensor]) -> str:
    save_file(state, path)
    return str(path)
