"""CLIP's image tower as a frozen encoder of patches: images [B, 3, side, side] -> features [B, N, D].

`load_clip` loads the tower, of any kind: `ClipPatchEncoder` here is the residual one, `ClipViTPatchEncoder`
(`models/clip/vit.py`) the Vision Transformer; towers that open_clip takes from timm are in `models/clip/timm_tower.py`.
`load_whole_clip` loads both towers of a CLIP, for zero-shot
classification (`models/clip/zero_shot.py`).

The feature of a patch in a residual CLIP is the column of the last residual stage at that patch, after the stage's
final ReLU and before attention pooling: for RN50x64 at 448 pixels [B, 196, 4096], patches in raster order, no
normalisation of the features (MaPeT, section 3: what k-means clusters into visual tokens). The network is open_clip's
ModifiedResNet (Radford et al. 2021, arXiv:2103.00020), run by the library's own `forward_intermediates`.

With `dilate_last_stage` the last stage keeps the resolution of the third, its 3x3 convolutions dilated by 2 so that
each sees the distances it was trained on (Yu, Koltun and Funkhouser 2017, arXiv:1705.09914): twice the patches per
side.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Float16, UInt8
from torch import Tensor, nn

from models.clip.files import (
    Config,
    read_config,
    read_preprocessing,
    read_weights,
    require_described,
    residual_names,
    uses_quick_gelu,
)
from models.clip.options import ClipOptions
from models.clip.timm_tower import is_timm_tower, load_timm_tower, outline_timm_tower
from models.clip.vit import ClipViTPatchEncoder
from models.clip.weight_files import find_weights
from models.clip.weights import draw_trunk, fill_clip, fill_trunk, trunk_digest
from models.encoders.arithmetic import arithmetic, normalised, require_pixels
from models.encoders.base import PatchEncoder
from models.encoders.preprocessing import Preprocessing
from models.errors import ModelError, in_short
from models.weights.digests import network_digest

logger = logging.getLogger(__name__)

STRIDE = 32  # input pixels per column of the last stage
LAST_STAGE = 4  # in forward_intermediates: the stem is 0, then the four residual stages

OpenClip = Any
"""open_clip's `CLIP`, an `nn.Module`: untyped, and imported only where it is used because that takes seconds."""

Template = str | Callable[[str], str]
"""A caption with {} for the class name, or what makes one of it."""


def clip_grid(image_size: int, dilate: bool) -> tuple[int, int]:
    """Patches per column and row of the last stage.

    Raises:
        ModelError: `image_size` is not a multiple of 32, so that the edge of the image would belong to no patch.
    """
    if image_size <= 0 or image_size % STRIDE:
        raise ModelError(f"CLIP image size {image_size}: expected a multiple of {STRIDE} pixels, one patch each")
    side = image_size // STRIDE * (2 if dilate else 1)
    return side, side


class ClipPatchEncoder(PatchEncoder):
    """A residual CLIP's trunk: the columns of its last stage.

    Args:
        trunk: open_clip's `ModifiedResNet` without its attention pooling, filled with its weights.
        dilated: whether the last stage's stride has become dilation, which is part of the digest.
        compile_trunk: trade a first slow batch for speed.

    Raises:
        ModelError: the patches do not fill the image.
    """

    trunk: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        *,
        name: str,
        preprocessing: Preprocessing,
        precision: str,
        dilated: bool,
        compile_trunk: bool = False,
    ):
        super().__init__()
        self.trunk = trunk.eval().requires_grad_(False)
        self.name, self.preprocessing, self.precision = name, preprocessing, precision
        self.grid = clip_grid(preprocessing.image_size, dilated)
        self.width = self.trunk.layer4[-1].bn3.num_features
        on_meta = any(tensor.is_meta for tensor in trunk.parameters())
        self.digest = "" if on_meta else trunk_digest(trunk, dilated=dilated)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1), persistent=False)
        self._run_trunk = torch.compile(self._last_stage) if compile_trunk else self._last_stage

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "B 3 side side"]) -> Float16[Tensor, "B N D"]:
        """Encode as `PatchEncoder.forward` says."""
        require_pixels(images, self.preprocessing.image_size, name=self.name)
        with arithmetic(self.precision, images.device):
            features = self._run_trunk(normalised(images, self.mean, self.std))
        return features.flatten(2).transpose(1, 2).to(torch.float16).contiguous()

    def _last_stage(self, pixels: Float[Tensor, "B 3 side side"]) -> Float[Tensor, "B D H W"]:
        output = self.trunk.forward_intermediates(pixels, indices=[LAST_STAGE], intermediates_only=True)
        return output["image_intermediates"][0]


def load_clip(options: ClipOptions, *, device: torch.device | str = "cpu", compile_trunk: bool = False) -> PatchEncoder:
    """Load the encoder with its weights onto `device`; `compile_trunk` trades a first slow batch for speed.

    Raises:
        ModelError: unknown model or tag, weights that cannot be had, or that do not fit; says what to do.
    """
    config = _patch_config(options)
    preprocessing = read_preprocessing(config, model=options.model, image_size=options.image_size)
    load = load_timm_tower if is_timm_tower(config) else _load
    encoder = load(options, config, preprocessing, compile_trunk=compile_trunk)
    return encoder.on(torch.device(device))


def _load(options: ClipOptions, config: Config, preprocessing: Preprocessing, *, compile_trunk: bool) -> PatchEncoder:
    path = find_weights(options.model, pretrained=options.pretrained) if options.pretrained else None
    tower = _build_tower(options, config, quick_gelu=uses_quick_gelu(config, path)).to_empty(device="cpu")
    if path is None:
        draw_trunk(tower)
    else:
        fill_trunk(tower, read_weights(path), source=f"{path} ({options.model})")
        require_described(config, path, model=options.model)
    return _encoder(tower, options, preprocessing, compile_trunk=compile_trunk)


def outline_clip(options: ClipOptions, config: Config | None = None) -> PatchEncoder:
    """Build the encoder on the meta device: grid, width, preprocessing and shapes, but no weights.

    Args:
        config: of a CLIP that is not there yet, in place of the model's.

    Raises:
        ModelError: unknown model.
    """
    config = _patch_config(options) if config is None else config
    preprocessing = read_preprocessing(config, model=options.model, image_size=options.image_size)
    if is_timm_tower(config):
        return outline_timm_tower(options, config, preprocessing).to("meta")
    tower = _build_tower(options, config, quick_gelu=uses_quick_gelu(config, None))
    return _encoder(tower, options, preprocessing).to("meta")


@dataclass(frozen=True)
class WholeClip:
    """open_clip's model with both towers, in evaluation mode.

    Attributes:
        tokenizer: captions to token ids, int64 [captions, context].
        preprocessing: what the image tower was made for.
        digest: SHA-256 of all tensors and of the configuration; "" where nobody needs it.
    """

    model: OpenClip
    tokenizer: Callable[[list[str]], Tensor]
    preprocessing: Preprocessing
    digest: str = ""


def load_whole_clip(options: ClipOptions) -> WholeClip:
    """Load both towers as they were trained, on the CPU.

    `image_size` and `dilate_last_stage` concern patches only and are not looked at.

    Raises:
        ModelError: as `load_clip`; also random weights, no text tower, or not the one of open_clip's plain `CLIP`.
    """
    import open_clip

    if not options.pretrained:
        raise ModelError(f"{options.model}: random weights know no words; set clip.pretrained")
    config = read_config(options.model, pretrained=options.pretrained)
    preprocessing = read_preprocessing(config, model=options.model)
    path = find_weights(options.model, pretrained=options.pretrained)
    parts = {name: config.get(name) for name in ("embed_dim", "vision_cfg", "text_cfg")}
    parts["quick_gelu"] = uses_quick_gelu(config, path)
    try:
        with torch.random.fork_rng(devices=[]):  # layers draw weights, which are overwritten
            model = open_clip.CLIP(**parts).eval().requires_grad_(False)
        tokenizer = open_clip.get_tokenizer(options.model)
    except (AssertionError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        what = "no text tower that open_clip's CLIP could be built with"
        raise ModelError(f"CLIP model {options.model!r} has {what} ({in_short(error)})") from error
    fill_clip(model, read_weights(path), source=f"{path} ({options.model})")
    require_described(config, path, model=options.model, towers=("vision_cfg", "text_cfg"))
    return WholeClip(model, tokenizer, preprocessing, network_digest(model, parts))


@torch.no_grad()
def class_features(
    clip: WholeClip, class_names: Sequence[str], templates: Sequence[Template]
) -> Float[Tensor, "D classes"]:
    """Return a unit column for each class, on the model's device: the normalised mean of its captions' features
    (Radford et al. 2021, section 3.1.4)."""
    from open_clip import build_zero_shot_classifier

    device = next(clip.model.parameters()).device
    return build_zero_shot_classifier(clip.model, clip.tokenizer, class_names, templates, device=device).float()


def openai_templates(name: Literal["openai", "simple"]) -> tuple[Template, ...]:
    """Return OpenAI's captions for ImageNet: all 80, or the 7 that do nearly as well."""
    import open_clip

    named = {"openai": open_clip.OPENAI_IMAGENET_TEMPLATES, "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES}
    return tuple(named[name])


def imagenet_class_names() -> tuple[str, ...]:
    """Return OpenAI's names of the 1000 classes, in the order of the sorted wnids."""
    import open_clip

    return tuple(open_clip.IMAGENET_CLASSNAMES)


def _patch_config(options: ClipOptions) -> Config:
    """Return the configuration of a CLIP whose patches have features, and that can do what the options ask for.

    Raises:
        ModelError: unknown model, a tower of another kind, or an image size or dilation that it does not have.
    """
    config = read_config(options.model, pretrained=options.pretrained)
    vision = config["vision_cfg"]
    kind, trained_at = _kind(vision), vision.get("image_size", 224)
    if kind is None:
        raise ModelError(
            f"CLIP model {options.model!r} has {_oddity(vision)}; patch features come from a ModifiedResNet "
            f"({residual_names()}), from a plain Vision Transformer of open_clip itself (ViT-B-32, ViT-B-16, "
            "ViT-L-14, ...) or from a network of timm (ViT-B-16-SigLIP2, EVA02-B-16, ...)"
        )
    if kind == "transformer" and options.image_size not in (None, trained_at):
        raise ModelError(
            f"{options.model}: image_size is {options.image_size}, expected {trained_at}: a Vision Transformer has "
            "learnt a position for each of its patches and knows no others; leave image_size out"
        )
    if kind == "timm" and options.image_size not in (None, trained_at):
        raise ModelError(
            f"{options.model}: image_size is {options.image_size}, expected {trained_at}: open_clip builds its tower "
            "for that size; leave image_size out, or take the tower from timm (tokenizer=kmeans encoder.timm="
            f"{vision['timm_model_name']} encoder.image_size={options.image_size})"
        )
    if kind != "residual" and options.dilate_last_stage:
        raise ModelError(
            f"{options.model}: it has no stage to dilate, that is for RN* models; set dilate_last_stage=false"
        )
    return config


def _kind(vision: Config) -> Literal["residual", "transformer", "timm"] | None:
    """Tell which tower open_clip builds; None if it has no last stage or its tokens do not pass its last norm."""
    layers = vision.get("layers")
    if vision.get("timm_model_name"):
        return "timm"
    if vision.get("attentional_pool"):
        return None
    if isinstance(layers, list):
        return "residual"
    return "transformer" if isinstance(layers, int) and layers > 0 else None


def _oddity(vision: Config) -> str:
    return "an attentional pooler" if vision.get("attentional_pool") else f"layers {vision.get('layers')!r}"


def _build_tower(options: ClipOptions, config: Config, *, quick_gelu: bool) -> nn.Module:
    """Build the tower on the meta device: without memory, and without a draw from the global generator."""
    with torch.device("meta"):
        if _kind(config["vision_cfg"]) == "transformer":
            return _build_vit(config, model=options.model, quick_gelu=quick_gelu)
        return _build_trunk(config["vision_cfg"], dilate=options.dilate_last_stage)


def _encoder(
    tower: nn.Module, options: ClipOptions, preprocessing: Preprocessing, *, compile_trunk: bool = False
) -> PatchEncoder:
    from open_clip.modified_resnet import ModifiedResNet

    common: dict[str, Any] = {
        "name": options.model,
        "preprocessing": preprocessing,
        "precision": options.precision,
        "compile_trunk": compile_trunk,
    }
    if isinstance(tower, ModifiedResNet):
        return ClipPatchEncoder(tower, dilated=options.dilate_last_stage, **common)
    return ClipViTPatchEncoder(tower, **common)


def _build_vit(config: Config, *, model: str, quick_gelu: bool) -> nn.Module:
    import open_clip

    text = {"layers": 1}  # the public way to the image tower leads through a whole CLIP: take the smallest
    try:
        whole = open_clip.CLIP(config.get("embed_dim"), config["vision_cfg"], text, quick_gelu=quick_gelu)
    except (ArithmeticError, AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        what = "its configuration is none that open_clip could build a Vision Transformer from"
        raise ModelError(f"CLIP model {model!r}: {what} ({in_short(error)})") from error
    tower: nn.Module = whole.visual
    return tower


def _build_trunk(vision: Config, *, dilate: bool) -> nn.Module:
    from open_clip.modified_resnet import ModifiedResNet

    trunk = ModifiedResNet(list(vision["layers"]), output_dim=1, heads=1, width=vision.get("width", 64))
    trunk.attnpool = None  # 55 of RN50x64's 420 million parameters, and nothing before it needs them
    if dilate:
        _dilate(trunk.layer4)
    return trunk


def _dilate(stage: Any) -> None:
    """Drop the stride, which open_clip's Bottleneck keeps in two average pools, and dilate the 3x3s after it."""
    first, *later = stage
    first.avgpool = nn.Identity()
    first.downsample[0] = nn.Identity()
    for block in later:
        block.conv2.dilation = block.conv2.padding = (2, 2)
