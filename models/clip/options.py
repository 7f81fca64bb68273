"""The choices of a CLIP."""

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from models.options import Options, PathText

LOCAL_DIR = "local-dir:"


def _at_home(model: str) -> str:
    """Put the home directory into `local-dir:~/clip`; leave other names as they are."""
    path = model.removeprefix(LOCAL_DIR)
    return model if path == model else f"{LOCAL_DIR}{os.path.expanduser(path)}"


ModelName = Annotated[str, AfterValidator(_at_home)]
"""An architecture of open_clip, or LOCAL_DIR and a directory."""


class ClipOptions(Options):
    """Which CLIP sees the images, and how."""

    model: ModelName = "RN50x64-quickgelu"
    """Any architecture of open_clip whose image tower has patches (RN*, ViT-*, and towers of timm such as SigLIP's),
    or "local-dir:/path" with open_clip_config.json and the weights."""
    pretrained: PathText = "openai"
    """A tag of open_clip, a checkpoint file (state dict, safetensors, OpenAI's archive), or "" for random weights.

    Of a file's preprocessing and activation an open_clip_config.json beside it tells, where there is one.

    A local directory brings its own weights, whatever tag stands here; "" and a file still overrule them."""
    image_size: int | None = Field(default=None, ge=1, le=4096)
    """Side of the input in pixels, a multiple of 32; by default the size the CLIP was trained at, a ViT's only one."""
    dilate_last_stage: bool = False
    """Twice as many patches per side: the last stage's stride becomes dilation. Residual CLIPs only."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Arithmetic of the tower on a GPU, part of the result; on a CPU "fp16" computes in fp32. Features are float16."""
