"""Tiny CLIPs with a ViT, as folders that open_clip reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.tiny_clip import MEAN, STD

WIDTH, HEADS, PATCH, SIZE, EMBEDDING = 64, 2, 16, 64, 32


def vit_config(**vision: Any) -> dict[str, Any]:
    """Return open_clip's `model_cfg` of a CLIP with two blocks in its Vision Transformer and one in its text tower."""
    tower = {"image_size": SIZE, "layers": 2, "width": WIDTH, "head_width": WIDTH // HEADS, "patch_size": PATCH}
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    return {"embed_dim": EMBEDDING, "vision_cfg": tower | vision, "text_cfg": text}


def vit_clip(config: Mapping[str, Any], *, seed: int = 0) -> nn.Module:
    """Return a whole open_clip CLIP in which every tensor influences the result."""
    generator = torch.Generator().manual_seed(seed)
    model = open_clip.CLIP(**config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            drawn = torch.randn(tensor.shape, generator=generator)
            is_scale = tensor.ndim == 1 and name.endswith("weight")
            tensor.copy_(1 + 0.2 * drawn if is_scale else 0.2 * drawn)
    return model


def write_vit_clip(directory: Path, *, seed: int = 0, quick_gelu: bool = False, **vision: Any) -> str:
    """Write configuration and weights as open_clip does; the answer is a value for `ClipOptions.model`."""
    directory.mkdir(parents=True, exist_ok=True)
    config = vit_config(**vision) | ({"quick_gelu": True} if quick_gelu else {})
    written = {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (directory / "open_clip_config.json").write_text(json.dumps(written))
    state = vit_clip(config, seed=seed).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, directory / "open_clip_model.safetensors")
    return f"local-dir:{directory}"


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)
