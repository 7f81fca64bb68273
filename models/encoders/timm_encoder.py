"""Any network of timm as a frozen encoder of patches: images [B, 3, side, side] -> features [B, N, D].

    feature of patch i = column i of a block's output, with the network's last norm:  [B, D, rows, columns], flattened

What "a block's output" is, the library knows for every family (`forward_intermediates`): class and register tokens of a
Vision Transformer are no patches, a Swin or a ConvNeXt has a coarser grid with every stage. The grid and the width are
those that one forward pass without storage (torch's meta device) gives. The square is always the whole of what is cut
from an image: the library's `crop_pct` is a habit of classification, and would leave the edge without tokens.

The weights of open_clip's towers that are timm's (SigLIP, EVA-02, MobileCLIP, ...) come through the same door
(`models/clip/encoder.py`).
"""

import difflib
import inspect
from pathlib import Path
from textwrap import shorten
from typing import Any

import timm
import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor, nn

from models.encoders.arithmetic import arithmetic, normalised, require_pixels
from models.encoders.base import PatchEncoder
from models.encoders.options import PACKAGED, EncoderOptions
from models.encoders.packaged_weights import MEAN, STD, renamed
from models.encoders.preprocessing import Preprocessing
from models.encoders.timm_weights import CONFIG, find_weights, is_directory
from models.errors import ModelError, in_short
from models.weights.digests import network_digest
from models.weights.state_files import read_checkpoint

_LIBRARY_ERRORS = (ArithmeticError, AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)


class TimmPatchEncoder(PatchEncoder):
    """A network of timm up to one of its blocks.

    Args:
        network: what comes after the block is taken off.
        outline: the same encoder on the meta device, which tells grid and width; None where this one is there itself.
        name: of the network, in messages and reports.
        block: whose output the features are, from 0; negative ones count from the last.
        norm: whether its last norm is applied to them.
        compile_network: trade a first slow batch for speed.

    Raises:
        ModelError: it has no such block, its features lie on no grid, or the patches do not fill the image.
    """

    network: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        outline: PatchEncoder | None,
        name: str,
        preprocessing: Preprocessing,
        precision: str,
        block: int = -1,
        norm: bool = True,
        compile_network: bool = False,
    ):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.name, self.preprocessing, self.precision = name, preprocessing, precision
        self._block, self._norm = self._cut(block, norm), norm and _has_norm(network)
        self.grid, self.width = self._outline() if outline is None else (outline.grid, outline.width)
        self.digest = "" if outline is None else self._digest()
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1), persistent=False)
        self._run = torch.compile(self._features) if compile_network else self._features

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "B 3 side side"]) -> Float16[Tensor, "B N D"]:
        """Encode as `PatchEncoder.forward` says."""
        require_pixels(images, self.preprocessing.image_size, name=self.name)
        with arithmetic(self.precision, images.device):
            features = self._run(normalised(images, self.mean, self.std))
        return features.flatten(2).transpose(1, 2).to(torch.float16).contiguous()

    def _features(self, pixels: Float[Tensor, "B 3 side side"]) -> Float[Tensor, "B D rows columns"]:
        options: dict[str, bool] = {"norm": True} if self._norm else {}
        found = self.network.forward_intermediates(
            pixels, indices=[self._block], output_fmt="NCHW", intermediates_only=True, **options
        )
        features: Tensor = found[0]
        return features

    def _cut(self, block: int, norm: bool) -> int:
        """Take off what comes after the block, which would be computed and held for nothing; return its index."""
        if not hasattr(self.network, "forward_intermediates"):
            raise ModelError(f"{self.name}: timm gives no features of this network; choose another encoder.timm")
        try:
            taken: list[int] = self.network.prune_intermediate_layers([block], prune_norm=not norm, prune_head=True)
        except _LIBRARY_ERRORS as error:
            raise ModelError(f"{self.name}: has no block {block} ({in_short(error)}); change encoder.block") from error
        return taken[0]

    def _outline(self) -> tuple[tuple[int, int], int]:
        """Return grid and width of the features, by a forward pass on the meta device, which computes nothing."""
        side = self.preprocessing.image_size
        try:
            with torch.no_grad():
                _, width, *grid = self._features(torch.zeros((1, 3, side, side), device="meta")).shape
        except _LIBRARY_ERRORS as error:
            raise ModelError(
                f"{self.name}: gives no features on a grid for images of {side} pixels ({in_short(error)}); change "
                "encoder.image_size, encoder.block or encoder.norm"
            ) from error
        return _require_grid(grid, side, self.name), width

    def _digest(self) -> str:
        """Hash the tensors that features depend on, and what their shapes do not tell."""
        said = {"block": self._block, "norm": self._norm, "architecture": self.network.pretrained_cfg["architecture"]}
        return network_digest(self.network, said)


def load_timm(
    options: EncoderOptions, *, device: torch.device | str = "cpu", compile_network: bool = False
) -> PatchEncoder:
    """Load the encoder with its weights onto `device`.

    Raises:
        ModelError: unknown name, weights that cannot be had, or that do not fit; says what to do.
    """
    outline = outline_timm(options)
    path = find_weights(options)
    network = _drawn(options) if path is None else _filled(options, path)
    encoder = _encoder(network, options, outline, compile_network=compile_network)
    return encoder.on(torch.device(device))


def outline_timm(options: EncoderOptions) -> PatchEncoder:
    """Build the encoder on the meta device: grid, width, preprocessing and shapes, but no weights.

    Raises:
        ModelError: unknown name, or as `TimmPatchEncoder`.
    """
    return _encoder(_create(options, device="meta", num_classes=0), options, None)


def _encoder(
    network: nn.Module, options: EncoderOptions, outline: PatchEncoder | None, *, compile_network: bool = False
) -> PatchEncoder:
    return TimmPatchEncoder(
        network,
        outline=outline,
        name=_short_name(options),
        preprocessing=_preprocessing(network, options),
        precision=options.precision,
        block=options.block,
        norm=options.norm,
        compile_network=compile_network,
    )


def _short_name(options: EncoderOptions) -> str:
    name = Path(options.timm).name if is_directory(options.timm) else options.timm
    return name if options.weights else f"{name.partition('.')[0]} with random weights"


def _preprocessing(network: nn.Module, options: EncoderOptions) -> Preprocessing:
    from timm.data import resolve_model_data_config

    seen = resolve_model_data_config(network)
    if options.weights == PACKAGED:
        seen |= {"mean": MEAN, "std": STD}
    interpolation = "bilinear" if seen["interpolation"] == "bilinear" else "bicubic"
    return Preprocessing(_image_size(network, options), tuple(seen["mean"]), tuple(seen["std"]), interpolation)


def _image_size(network: Any, options: EncoderOptions) -> int:
    channels, rows, columns = network.pretrained_cfg["input_size"]
    if channels != 3 or rows != columns:
        raise ModelError(
            f"{options.timm}: was trained on {channels} channels of {rows} x {columns} pixels, expected colour squares"
        )
    return options.image_size or int(rows)


def _create(options: EncoderOptions, **arguments: Any) -> Any:
    """Call timm for the network of that name, for images of the wanted size.

    Raises:
        ModelError: unknown name, no configuration, or a size that the network cannot have.
    """
    known = _require_known(options)
    if options.image_size and (known is None or known.fixed_input_size):  # others take any size as they are
        arguments["img_size"] = options.image_size
    name = f"local-dir:{options.timm}" if is_directory(options.timm) else options.timm
    try:
        return timm.create_model(name, **arguments)
    except _LIBRARY_ERRORS as error:
        raise ModelError(f"{options.timm}: timm cannot build it so ({_whole(error)})") from error


def _whole(error: Exception) -> str:
    """Say also what stands below the first line: which tensors of a state dict do not fit."""
    return shorten(f"{type(error).__name__}: {' '.join(str(error).split())}", 400, placeholder=" ...")


def _require_known(options: EncoderOptions) -> Any:
    """Return what timm knows of the name; None of a directory."""
    name = options.timm
    if is_directory(name):
        if not (Path(name) / CONFIG).is_file():
            raise ModelError(f"encoder.timm: {name} has no {CONFIG}; expected a directory as timm saves a network")
        return None
    bare, _, tag = name.partition(".")
    if not timm.is_model(bare):
        close = ", ".join(difflib.get_close_matches(bare, timm.list_models(), n=3, cutoff=0.5))
        raise ModelError(f"timm has no network {bare!r}" + (f"; close to it: {close}" if close else ""))
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{bare}.*")]
    if tag and tag not in tags:
        raise ModelError(f"timm has no {name!r}; tags of {bare}: {', '.join(tags) or 'none'}")
    return timm.get_pretrained_cfg(name)


def _drawn(options: EncoderOptions) -> Any:
    """Build the network with weights as timm draws them, the same on every machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _create(options, num_classes=0)


def _filled(options: EncoderOptions, path: Path) -> Any:
    """Build the network with the weights in a file: every tensor must be there and fit, none be left over.

    Old names and other sizes of learnt positions are the library's business, its own classifier comes off afterwards.
    """
    state = read_checkpoint(path, under=("state_dict", "model"))
    blank = _create(options, device="meta", num_classes=0)
    state = renamed(state, blank) if options.weights == PACKAGED else state
    head = blank.pretrained_cfg.get("classifier") or ""
    head = head if isinstance(head, str) else head[0]
    classes = len(state[f"{head}.weight"]) if f"{head}.weight" in state else 0
    # Loading is strict where the numbers of classes agree, and takes these tensors where nothing else is named.
    overlay = {"state_dict": state, "num_classes": classes, "source": "", "custom_load": False, "label_offset": 0}
    arguments = {"pretrained": True, "pretrained_cfg_overlay": overlay, "num_classes": classes}
    try:
        with torch.random.fork_rng(devices=[]):  # layers draw weights, which are overwritten
            return _create(options, **arguments)
    except ModelError as error:
        raise ModelError(f"{path} does not fit {options.timm}: {error}; choose the network it was made for") from error


def _has_norm(network: Any) -> bool:
    return "norm" in inspect.signature(network.forward_intermediates).parameters


def _require_grid(grid: list[int], side: int, name: str) -> tuple[int, int]:
    if len(grid) != 2 or any(side % count for count in grid):
        raise ModelError(
            f"{name}: {' x '.join(map(str, grid))} patches do not fill an image of {side} x {side} pixels; change "
            "encoder.image_size"
        )
    return grid[0], grid[1]
