"""DALL-E tokens: the most likely code of a discrete autoencoder's encoder (Ramesh et al. 2021, arXiv:2102.12092, 2.1).

    token(x) = argmax_k logits_k(0.8 x + 0.1),   x in [0, 1], one token for each 8 x 8 pixels

BEiT (Bao et al. 2021, arXiv:2106.08254) reads 14 x 14 tokens off images of 112 pixels resized with Lanczos' filter.
The network is a chain of four groups of two residual blocks with pre-activation, between them max pools of 2 x 2:

    block(y) = shortcut(y) + r(y) / 8^2,   r = four times (ReLU, convolution), kernels 3, 3, 3, 1

Parameters have the names of the released encoder (github.com/openai/DALL-E), so that its state dict loads strictly.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int, UInt8
from torch import Tensor, nn

from models.encoders.arithmetic import arithmetic, require_pixels
from models.encoders.preprocessing import Preprocessing
from models.errors import ModelError
from models.tokenizers.base import Tokenizer
from models.tokenizers.dalle_options import DalleOptions
from models.weights.digests import network_digest
from models.weights.state_files import misfit, read_checkpoint, shapes_of

SCALE, SHIFT = 0.8, 0.1  # pixels stay off 0 and 1, where the decoder's logit-Laplace density has no value
NOT_FINITE = -1


@dataclass(frozen=True)
class DalleShape:
    """The sizes of an encoder; the defaults are those of the published one.

    Group i, from 0, is hidden * 2^i wide.
    """

    hidden: int = 256
    groups: int = 4
    blocks: int = 2
    vocabulary: int = 8192

    @property
    def stride(self) -> int:
        """Pixels per token and side: a pool between any two groups."""
        return 2 ** (self.groups - 1)


PUBLISHED = DalleShape()


class DalleEncoder(nn.Module):
    """Images [B, 3, side, side] to logits [B, K, side / 8, side / 8]. No weights are drawn: they are always loaded."""

    def __init__(self, shape: DalleShape = PUBLISHED):
        super().__init__()
        self.shape = shape
        widths = [shape.hidden * 2 ** max(place - 1, 0) for place in range(shape.groups + 1)]
        parts: dict[str, nn.Module] = {"input": _Convolution(3, shape.hidden, kernel=7)}
        for group in range(1, shape.groups + 1):
            blocks = _group(widths[group - 1], widths[group], shape)
            if group < shape.groups:
                blocks["pool"] = nn.MaxPool2d(2)
            parts[f"group_{group}"] = nn.Sequential(blocks)
        last = _Convolution(widths[-1], shape.vocabulary, kernel=1)
        parts["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=last))
        self.blocks = nn.Sequential(OrderedDict(parts))

    def forward(self, pixels: Float32[Tensor, "B 3 side side"]) -> Float32[Tensor, "B K H W"]:
        return self.blocks(pixels)


def _group(width_in: int, width: int, shape: DalleShape) -> OrderedDict[str, nn.Module]:
    gain = 1 / (shape.groups * shape.blocks) ** 2
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for block in range(1, shape.blocks + 1):
        blocks[f"block_{block}"] = _Block(width_in if block == 1 else width, width, gain=gain)
    return blocks


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int, *, gain: float):
        super().__init__()
        self.gain = gain
        self.id_path = _Convolution(width_in, width, kernel=1) if width_in != width else nn.Identity()
        widths = [width_in, width // 4, width // 4, width // 4, width]
        path: OrderedDict[str, nn.Module] = OrderedDict()
        for place, kernel in enumerate((3, 3, 3, 1), start=1):
            path[f"relu_{place}"] = nn.ReLU()
            path[f"conv_{place}"] = _Convolution(widths[place - 1], widths[place], kernel=kernel)
        self.res_path = nn.Sequential(path)

    def forward(self, x: Float32[Tensor, "B channels H W"]) -> Float32[Tensor, "B D H W"]:
        return self.id_path(x) + self.gain * self.res_path(x)


class _Convolution(nn.Module):
    """A convolution that keeps the size; its tensors are called `w` and `b`."""

    def __init__(self, width_in: int, width: int, *, kernel: int):
        super().__init__()
        self.w = nn.Parameter(torch.empty(width, width_in, kernel, kernel))
        self.b = nn.Parameter(torch.empty(width))

    def forward(self, x: Float32[Tensor, "B channels H W"]) -> Float32[Tensor, "B D H W"]:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class DalleTokenizer(Tokenizer):
    """DALL-E's encoder and the argmax over its codes; float32 on every device, without TF32.

    The released code computes in float16 on a GPU, all but the last layer; here the token is the one of its CPU.

    Raises:
        ModelError: `image_size` is not a multiple of the encoder's stride.
    """

    def __init__(self, encoder: DalleEncoder, *, image_size: int = 112):
        super().__init__()
        stride = encoder.shape.stride
        if image_size <= 0 or image_size % stride:
            raise ModelError(f"DALL-E image size {image_size}: expected a multiple of {stride} pixels, one token each")
        self.name = "dalle"
        self.encoder = encoder.eval().requires_grad_(False)
        self.vocabulary = encoder.shape.vocabulary
        self.grid = (image_size // stride, image_size // stride)
        self.precision = "fp32"
        # (x - mean) / std is 0.8 x + 0.1
        mean, std = -SHIFT / SCALE, 1 / SCALE
        self.preprocessing = Preprocessing(image_size, (mean, mean, mean), (std, std, std), "lanczos")
        self.digest = self._digest()

    def train(self, mode: bool = True) -> "DalleTokenizer":
        """Stay frozen."""
        return super().train(False)

    def _digest(self) -> str:
        """Hash the encoder's tensors and the preprocessing; "" on the meta device."""
        if any(tensor.is_meta for tensor in self.encoder.parameters()):
            return ""
        return network_digest(self, {"shape": str(self.encoder.shape), "preprocessing": str(self.preprocessing)})

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "B 3 side side"]) -> Int[Tensor, "B N"]:
        """Tokenize as the contract says; of equal logits the lowest id wins."""
        require_pixels(images, self.preprocessing.image_size, name=self.name)
        with arithmetic("fp32", images.device):
            logits = self.encoder(images.float() / 255 * SCALE + SHIFT)
        ids = logits.argmax(1)  # names the first of equal logits, unlike max on a GPU
        return ids.masked_fill_(~torch.isfinite(logits).all(1), NOT_FINITE).flatten(1)


def outline_dalle(options: DalleOptions) -> DalleTokenizer:
    """Build the published tokenizer on the meta device, without weights.

    Raises:
        ModelError: it takes no images of this size.
    """
    with torch.device("meta"):
        encoder = DalleEncoder()
    return DalleTokenizer(encoder, image_size=options.image_size)


def load_dalle(
    options: DalleOptions, *, shape: DalleShape = PUBLISHED, device: torch.device | str = "cpu"
) -> DalleTokenizer:
    """Load the tokenizer with its weights onto `device`.

    Args:
        shape: what the checkpoint must be; the published sizes unless a test wants smaller ones.

    Raises:
        ModelError: the checkpoint cannot be read as plain tensors, or they are not exactly those of such an encoder:
            the first one that is missing, unexpected or of another shape is named. Or the image size does not fit.
    """
    if not options.checkpoint:
        raise ModelError(
            "dalle.checkpoint is empty; make one of the published encoder.pkl with `mapet convert-dalle`, and name it"
        )
    try:
        state = read_checkpoint(Path(options.checkpoint))
    except ModelError as error:
        raise ModelError(f"{error}; the published encoder.pkl goes through `mapet convert-dalle` first") from error
    check_dalle_state(state, shape, source=options.checkpoint)
    with torch.device("meta"):
        encoder = DalleEncoder(shape)
    encoder.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return DalleTokenizer(encoder, image_size=options.image_size).to(device)


def check_dalle_state(state: Mapping[str, Tensor], shape: DalleShape = PUBLISHED, *, source: str) -> None:
    """Refuse all but the floating-point tensors of an encoder of this shape.

    Raises:
        ModelError: names the first tensor that is missing, unexpected or of another shape or kind.
    """
    with torch.device("meta"):
        wanted = shapes_of(DalleEncoder(shape).state_dict())
    problems = misfit(shapes_of(state), wanted)
    if not problems:
        problems = next((f"{name} is {one.dtype}" for name, one in state.items() if not one.is_floating_point()), "")
    if problems:
        raise ModelError(
            f"{source} is not an encoder of DALL-E with {shape.groups} groups of {shape.blocks} blocks, {shape.hidden} "
            f"channels and {shape.vocabulary} codes: {problems}; expected the encoder, not the decoder, as published"
        )
