"""VQ-KD checkpoints (BEiT v2, Peng et al. 2022, arXiv:2208.06366), checked key by key and read for encoding.

The encoder is a plain Vision Transformer whose attention has biases for queries and values alone: with zeros between
them they are timm's `qkv.bias`, and every other name is timm's behind "encoder.". Above it stand the task layer
(Linear, Tanh, Linear) and the codebook. What only training needs, decoder, teacher and running statistics, is not read;
what was trained here is written with all of it but the teacher.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.errors import ModelError
from models.vqkd.options import HEAD_WIDTH, VQKDSizes
from models.weights.state_files import Shapes, misfit, read_with_arguments, shapes_of
from models.weights.timm_files import filled

ENCODER, TASK_LAYER, CODEBOOK = "encoder.", "encode_task_layer.", "quantize.embedding.weight"
DECODER, DECODER_TASK_LAYER = "decoder.", "decode_task_layer."
ONLY_FOR_TRAINING = (DECODER, DECODER_TASK_LAYER, "teacher", "loss", "scaling")
PIXELS = "default"  # BEiT v2's name of the only normalisation that its published tokenizers know
STATISTICS = {"quantize.cluster_size"} | {f"quantize.embedding.{n}" for n in ("cluster_size", "embed_avg", "initted")}
UNIT_TOLERANCE = 1e-2  # of a codebook row's length: float16 loses 1e-3


@dataclass(frozen=True)
class VQKDParts:
    """What turns pixels into codes: `encoder`, D wide; `task_layer`, D to a code's width; `codebook`, unit rows."""

    encoder: VisionTransformer
    task_layer: nn.Sequential
    codebook: Float[Tensor, "K code"]


def read_vqkd(path: Path, *, image_size: int) -> VQKDParts:
    """Read encoder, task layer and codebook of a checkpoint, on the CPU in float32; nothing in the file is executed.

    Raises:
        ModelError: the file cannot be read, or says that it was trained on pixels of another scale; its tensors are not
            exactly those of a VQ-KD for `image_size`, of which the first that is missing, unexpected and of another
            shape are named; the codebook's rows are no unit vectors.
    """
    state, arguments = read_with_arguments(path, under=("model", "state_dict"))
    if (seen := arguments.get("process_type") or PIXELS) != PIXELS:
        raise ModelError(
            f"{path}: trained with process_type={seen!r}, as its arguments say; expected {PIXELS!r}, pixels from -1 to "
            "1, as the published ones"
        )
    state = {name: tensor for name, tensor in state.items() if _is_read(name)}
    blank = blank_vqkd(shapes_of(state), image_size=image_size, source=str(path))
    task_layer = blank.task_layer.to_empty(device="cpu")
    task_layer.load_state_dict(_behind(TASK_LAYER, state))
    codebook = _unit_rows(state[CODEBOOK].detach().float(), source=str(path))
    return VQKDParts(filled(blank.encoder, _joined_biases(_behind(ENCODER, state))), task_layer, codebook)


def published_layout(
    parts: VQKDParts, *, decoder: VisionTransformer, decoder_task_layer: nn.Sequential, usage: Float[Tensor, " K"]
) -> dict[str, Tensor]:
    """Arrange a trained VQ-KD as BEiT v2's training saves it, on the CPU: what `read_vqkd` reads, and the rest.

    Of the running statistics norm EMA needs `cluster_size` alone; the other three are there because a strict loader of
    the published files expects them.

    Args:
        usage: how often each code was used, as a moving average.
    """
    towers = {ENCODER: _split_biases(parts.encoder.state_dict()), DECODER: _split_biases(decoder.state_dict())}
    towers |= {TASK_LAYER: parts.task_layer.state_dict(), DECODER_TASK_LAYER: decoder_task_layer.state_dict()}
    state = {prefix + name: tensor for prefix, tensors in towers.items() for name, tensor in tensors.items()}
    state |= {CODEBOOK: parts.codebook, "quantize.cluster_size": usage}
    state |= {"quantize.embedding.cluster_size": usage, "quantize.embedding.embed_avg": parts.codebook}
    state |= {"quantize.embedding.initted": torch.ones(1)}
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def blank_vqkd(shapes: Shapes, *, image_size: int, source: str) -> VQKDParts:
    """Build the network that a checkpoint's tensors describe, on the meta device.

    Args:
        shapes: of the tensors by name, without those that only training needs.
        source: what the error message calls the checkpoint.

    Raises:
        ModelError: as `read_vqkd`.
    """
    sizes = _sizes_of(shapes)
    wanted = checkpoint_shapes(_outline(sizes, image_size=image_size, heads=1))  # no shape depends on the heads
    if problems := misfit(shapes, wanted):
        what = f"{sizes.width} wide, {sizes.depth} blocks deep, for {image_size} pixels"
        raise ModelError(f"{source} is no VQ-KD of BEiT v2 {what}: {problems}{_hint(shapes, sizes, image_size)}")
    return build_vqkd(sizes, image_size=image_size, source=source)


def build_vqkd(
    sizes: VQKDSizes, *, image_size: int, source: str = "VQ-KD", device: torch.device | str = "meta"
) -> VQKDParts:
    """Build the network on a device, its weights drawn from torch's generator as timm does; on the meta device, where
    nothing takes memory, nothing is drawn.

    Raises:
        ModelError: the width is not a whole number of heads, or the image not one of patches.
    """
    if sizes.width % HEAD_WIDTH or image_size % sizes.patch_size:
        raise ModelError(
            f"{source}: an encoder {sizes.width} wide with patches of {sizes.patch_size} pixels; expected a multiple "
            f"of {HEAD_WIDTH}, the width of a head, and patches that divide vqkd.image_size {image_size}"
        )
    return _outline(sizes, image_size=image_size, heads=sizes.width // HEAD_WIDTH, device=device)


def build_decoder(sizes: VQKDSizes, *, grid: int, depth: int, device: torch.device | str = "meta") -> VisionTransformer:
    """Build what reads the grid of codes in training, code by code: as wide as the encoder, with as many heads."""
    heads = sizes.width // HEAD_WIDTH
    with torch.device(device):
        return _transformer(grid, 1, sizes.code_width, width=sizes.width, depth=depth, heads=heads)


def build_task_layer(width: int, out: int) -> nn.Sequential:
    """Build what leads from a tower to the codes, or from the codes' decoder to the teacher: linear, tanh, linear."""
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))


def _outline(sizes: VQKDSizes, *, image_size: int, heads: int, device: torch.device | str = "meta") -> VQKDParts:
    with torch.device(device):
        encoder = _transformer(image_size, sizes.patch_size, 3, width=sizes.width, depth=sizes.depth, heads=heads)
        codebook = torch.empty(sizes.vocabulary, sizes.code_width)
        return VQKDParts(encoder, build_task_layer(sizes.width, sizes.code_width), codebook)


def _transformer(
    image_size: int, patch_size: int, channels: int, *, width: int, depth: int, heads: int
) -> VisionTransformer:
    return VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        in_chans=channels,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        global_pool="avg",  # the last norm is `fc_norm`
        num_classes=0,
    )


def checkpoint_shapes(parts: VQKDParts) -> Shapes:
    """Return the tensors of a checkpoint that encoding needs, as BEiT v2 names them."""
    shapes: dict[str, torch.Size] = {}
    for name, shape in shapes_of(parts.encoder.state_dict()).items():
        if name.endswith("attn.qkv.bias"):
            for letter in "qv":
                shapes[ENCODER + name.replace("qkv.bias", f"{letter}_bias")] = torch.Size((shape[0] // 3,))
        else:
            shapes[ENCODER + name] = shape
    shapes |= {TASK_LAYER + name: shape for name, shape in shapes_of(parts.task_layer.state_dict()).items()}
    return shapes | {CODEBOOK: parts.codebook.shape}


def _is_read(name: str) -> bool:
    return not name.startswith(ONLY_FOR_TRAINING) and name not in STATISTICS


def _behind(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _sizes_of(shapes: Shapes) -> VQKDSizes:
    """Read the sizes off two tensors and the number of blocks; where these are missing or odd, take the published."""

    def shape(name: str, otherwise: tuple[int, ...]) -> tuple[int, ...]:
        found = tuple(shapes.get(name, ()))
        return found if len(found) == len(otherwise) and all(found) else otherwise

    published = VQKDSizes()
    patch = published.patch_size
    width, _, _, patch = shape(f"{ENCODER}patch_embed.proj.weight", (published.width, 3, patch, patch))
    vocabulary, code_width = shape(CODEBOOK, (published.vocabulary, published.code_width))
    blocks = {name.split(".")[2] for name in shapes if name.startswith(f"{ENCODER}blocks.")}
    return VQKDSizes(width, len(blocks) or published.depth, patch, vocabulary, code_width)


def _hint(shapes: Shapes, sizes: VQKDSizes, image_size: int) -> str:
    positions = shapes.get(f"{ENCODER}pos_embed", torch.Size())
    grid = math.isqrt(max(positions[1] - 1, 0)) if len(positions) == 3 else 0
    if not grid or grid**2 + 1 != positions[1] or grid * sizes.patch_size == image_size:
        return ""
    return f"; its positions are for {grid * sizes.patch_size} pixels: set vqkd.image_size to that"


def _joined_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join biases as timm has them; the keys' is 0, for it would add the same to all scores of a query."""
    joined: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("attn.q_bias"):
            values = state[name.replace("q_bias", "v_bias")]
            joined[name.replace("q_bias", "qkv.bias")] = torch.cat([tensor, torch.zeros_like(tensor), values])
        elif not name.endswith("attn.v_bias"):
            joined[name] = tensor
    return joined


def _split_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split biases as `_joined_biases` joined them."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("attn.qkv.bias"):
            queries, keys, values = tensor.chunk(3)
            assert not keys.any(), f"{name}: the layout has no place for a bias of keys"
            split |= {name.replace("qkv.bias", "q_bias"): queries, name.replace("qkv.bias", "v_bias"): values}
        else:
            split[name] = tensor
    return split


def _unit_rows(codebook: Float[Tensor, "K code"], *, source: str) -> Float[Tensor, "K code"]:
    lengths = codebook.norm(dim=1)
    odd = ~((lengths - 1).abs() <= UNIT_TOLERANCE)  # true of NaN as well
    if bool(odd.any()):
        row = int(odd.nonzero()[0])
        raise ModelError(
            f"{source}: row {row} of {CODEBOOK} has the length {float(lengths[row]):.4g}, and {int(odd.sum())} of "
            f"{len(codebook)} rows are no unit vectors; expected the codebook of a finished training"
        )
    return codebook / lengths[:, None]
