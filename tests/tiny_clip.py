"""A CLIP of a few thousand weights, with every part a real one has, as open_clip writes it to a directory."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Layers = tuple[int, ...]
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)  # not CLIP's: a test must notice when the configuration is not read


def tiny_clip_config(
    *, width: int = 4, layers: Layers = (1, 1, 1, 1), image_size: int = 64, reads_captions: bool = False
) -> dict[str, object]:
    """Return open_clip's `model_cfg`; features have 32 * width channels. OpenAI's loader expects text heads of 64."""
    context, vocabulary = (16, 49408) if reads_captions else (8, 64)
    return {
        "embed_dim": 16,
        "vision_cfg": {"image_size": image_size, "layers": list(layers), "width": width, "patch_size": None},
        "text_cfg": {"context_length": context, "vocab_size": vocabulary, "width": 64, "heads": 1, "layers": 1},
    }


def tiny_clip(*, seed: int = 0, **config: Any) -> nn.Module:
    """Return a whole open_clip CLIP in which every tensor influences the result (the library zeroes residual
    branches)."""
    import open_clip

    model = open_clip.CLIP(**tiny_clip_config(**config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(_draw(name, tensor, generator))
    return model


def _draw(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.ndim == 4:
        return torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
    if name.endswith(("running_var", "weight")) and tensor.ndim == 1:
        return 0.5 + torch.rand(tensor.shape, generator=generator)
    return 0.2 * torch.randn(tensor.shape, generator=generator)


def write_tiny_clip(directory: Path, *, seed: int = 0, **config: Any) -> str:
    """Write configuration and weights; the answer is a value for `ClipOptions.model`."""
    directory.mkdir(parents=True, exist_ok=True)
    written = {"model_cfg": tiny_clip_config(**config), "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (directory / "open_clip_config.json").write_text(json.dumps(written))
    state = tiny_clip(seed=seed, **config).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, directory / "open_clip_model.safetensors")
    return f"local-dir:{directory}"
