"""VQ-KD checkpoints with the published layout, every tensor under its own name, as small as a test wants them."""

import math
from pathlib import Path

import torch
from torch import Tensor


def vqkd_shapes(
    *,
    width: int = 128,
    depth: int = 2,
    patch: int = 8,
    patches: int = 9,
    vocabulary: int = 60,
    code_width: int = 8,
    decoder_depth: int = 1,
    teacher_width: int = 16,
) -> dict[str, list[int]]:
    """Return the tensors of a published checkpoint by name: 220 with three decoder blocks, 194 with one, of twelve
    blocks."""

    def tower(prefix: str, blocks: int, embedding: list[int]) -> dict[str, list[int]]:
        block = {
            "norm1.weight": [width],
            "norm1.bias": [width],
            "attn.q_bias": [width],
            "attn.v_bias": [width],
            "attn.qkv.weight": [3 * width, width],
            "attn.proj.weight": [width, width],
            "attn.proj.bias": [width],
            "norm2.weight": [width],
            "norm2.bias": [width],
            "mlp.fc1.weight": [4 * width, width],
            "mlp.fc1.bias": [4 * width],
            "mlp.fc2.weight": [width, 4 * width],
            "mlp.fc2.bias": [width],
        }
        shapes = {
            "cls_token": [1, 1, width],
            "pos_embed": [1, patches + 1, width],
            "patch_embed.proj.weight": embedding,
            "patch_embed.proj.bias": [width],
            **{f"blocks.{i}.{name}": shape for i in range(blocks) for name, shape in block.items()},
            "fc_norm.weight": [width],
            "fc_norm.bias": [width],
        }
        return {f"{prefix}.{name}": shape for name, shape in shapes.items()}

    def task_layer(prefix: str, out: int) -> dict[str, list[int]]:
        shapes = {"0.weight": [width, width], "0.bias": [width], "2.weight": [out, width], "2.bias": [out]}
        return {f"{prefix}.{name}": shape for name, shape in shapes.items()}

    return {
        **tower("encoder", depth, [width, 3, patch, patch]),
        **tower("decoder", decoder_depth, [width, code_width, 1, 1]),
        "quantize.cluster_size": [vocabulary],
        "quantize.embedding.weight": [vocabulary, code_width],
        "quantize.embedding.cluster_size": [vocabulary],
        "quantize.embedding.embed_avg": [vocabulary, code_width],
        "quantize.embedding.initted": [1],
        **task_layer("encode_task_layer", code_width),
        **task_layer("decode_task_layer", teacher_width),
    }


def vqkd_state(*, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    """Return random weights under which every tensor moves the codes, and a codebook of unit rows."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in vqkd_shapes(**sizes).items():
        drawn = torch.randn(shape, generator=generator)
        if name.endswith("weight") and len(shape) == 1:
            state[name] = 1 + 0.3 * drawn  # of a norm
        elif name.endswith("weight"):
            gain = 3 if "patch_embed" in name else 1.5  # patches must differ more than all of them are shifted
            state[name] = drawn * gain / math.sqrt(math.prod(shape[1:]))
        else:
            state[name] = 0.2 * drawn
    codebook = state["quantize.embedding.weight"]
    return state | {"quantize.embedding.weight": codebook / codebook.norm(dim=1, keepdim=True)}


def write_tiny_vqkd(path: Path, *, seed: int = 0, **sizes: int) -> str:
    """Write a checkpoint for images of 24 pixels; the answer is a value for `VQKDOptions.checkpoint`."""
    torch.save({"model": vqkd_state(seed=seed, **sizes)}, path)
    return str(path)
