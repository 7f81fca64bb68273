"""CLIPs of open_clip whose image tower is a network of timm (SigLIP, EVA-02, MobileCLIP, ConvNeXt): the tower's trunk
as a frozen encoder of patches, by the door of every other network of timm.

What open_clip puts behind the trunk (a head that projects to the captions' space, an attention pooling) sees whole
images and is left out, as a residual CLIP's is.
"""

from typing import Any

import torch
from torch import nn

from models.clip.files import Config, read_weights, require_described
from models.clip.options import ClipOptions
from models.clip.weight_files import find_weights
from models.clip.weights import fill_trunk
from models.encoders.base import PatchEncoder
from models.encoders.preprocessing import Preprocessing
from models.encoders.timm_encoder import TimmPatchEncoder
from models.errors import ModelError, in_short


def is_timm_tower(config: Config) -> bool:
    """Return whether open_clip builds the image tower of this configuration from timm."""
    return bool(config["vision_cfg"].get("timm_model_name"))


def load_timm_tower(
    options: ClipOptions, config: Config, preprocessing: Preprocessing, *, compile_trunk: bool
) -> PatchEncoder:
    """Load the trunk with its weights, on the CPU.

    Raises:
        ModelError: as `load_clip`.
    """
    outline = outline_timm_tower(options, config, preprocessing)
    path = find_weights(options.model, pretrained=options.pretrained) if options.pretrained else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what is drawn stays where nothing overwrites it
        tower = _build(options, config)
    if path is not None:
        fill_trunk(tower, read_weights(path), source=f"{path} ({options.model})")
        require_described(config, path, model=options.model)
    return _encoder(tower, options, preprocessing, outline, compile_network=compile_trunk)


def outline_timm_tower(options: ClipOptions, config: Config, preprocessing: Preprocessing) -> PatchEncoder:
    """Build the encoder on the meta device. Raises ModelError where its features lie on no grid."""
    with torch.device("meta"):
        tower = _build(options, config)
    return _encoder(tower, options, preprocessing, None)


def _build(options: ClipOptions, config: Config) -> nn.Module:
    import open_clip

    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    try:
        whole = open_clip.CLIP(config.get("embed_dim"), vision, {"layers": 1})  # the smallest text tower that there is
    except (ArithmeticError, AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"CLIP model {options.model!r}: open_clip could not build its tower of timm, {vision['timm_model_name']} "
            f"({in_short(error)})"
        ) from error
    tower: nn.Module = whole.visual
    return tower


def _encoder(
    tower: Any, options: ClipOptions, preprocessing: Preprocessing, outline: PatchEncoder | None, **compiled: bool
) -> PatchEncoder:
    return TimmPatchEncoder(
        tower.trunk,
        outline=outline,
        name=options.model,
        preprocessing=preprocessing,
        precision=options.precision,
        **compiled,
    )
