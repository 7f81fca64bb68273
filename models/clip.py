"""CLIP's image tower as a frozen encoder of patches: images [B, 3, S, S] -> features [B, N, D].

The feature of a patch is the column of the last residual stage at that patch, after the stage's final ReLU and before
attention pooling: for RN50x64 at 448 pixels [B, 196, 4096], patches in raster order, no normalisation of the features
(MaPeT, section 3: what k-means clusters into visual tokens). The network is open_clip's ModifiedResNet (Radford et al.
2021, arXiv:2103.00020), run by the library's own `forward_intermediates`.

With `dilate_last_stage` the last stage keeps the resolution of the third, its 3x3 convolutions dilated by 2 so that
each sees the distances it was trained on (Yu, Koltun and Funkhouser 2017, arXiv:1705.09914): twice the patches per
side.

`load_clip` loads this tower; `load_whole_clip` loads both, for zero-shot classification (`models/zero_shot.py`).
"""

import difflib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Float16, UInt8
from pydantic import Field
from torch import Tensor, nn

from models.clip_arithmetic import arithmetic, normalised, require_pixels
from models.clip_weights import clip_digest, draw_trunk, fill_clip, fill_trunk, is_torchscript, trunk_digest
from models.errors import ModelError
from models.options import Options
from models.preprocessing import Preprocessing
from models.state_files import in_short, read_checkpoint

logger = logging.getLogger(__name__)

LOCAL_DIR = "local-dir:"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
STRIDE = 32  # input pixels per column of the last stage
LAST_STAGE = 4  # in forward_intermediates: the stem is 0, then the four residual stages

OpenClip = Any
"""open_clip's `CLIP`, an `nn.Module`: untyped, and imported only where it is used because that takes seconds."""

Template = str | Callable[[str], str]
"""A caption with {} for the class name, or what makes one of it."""


class ClipOptions(Options):
    """Which CLIP sees the images, and how."""

    model: str = "RN50x64-quickgelu"
    """Any RN* architecture of open_clip, or "local-dir:/path" with open_clip_config.json and one file of weights."""
    pretrained: str = "openai"
    """A tag of open_clip, a checkpoint file (state dict, safetensors, OpenAI's archive), or "" for random weights.

    A local directory brings its own weights, whatever tag stands here; "" and a file still overrule them."""
    image_size: int | None = Field(default=None, gt=0)
    """Side of the input in pixels, a multiple of 32; by default the size the CLIP was trained at."""
    dilate_last_stage: bool = False
    """Twice as many patches per side: the last stage's stride becomes dilation."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Arithmetic of the tower on a GPU, part of the result; on a CPU "fp16" computes in fp32. Features are float16."""


def clip_grid(image_size: int, dilate: bool) -> tuple[int, int]:
    """Patches per column and row of the last stage.

    Raises:
        ModelError: `image_size` is not a multiple of 32, so that the edge of the image would belong to no patch.
    """
    if image_size <= 0 or image_size % STRIDE:
        raise ModelError(f"CLIP image size {image_size}: expected a multiple of {STRIDE} pixels, one patch each")
    side = image_size // STRIDE * (2 if dilate else 1)
    return side, side


class ClipPatchEncoder(nn.Module):
    """A frozen CLIP trunk: always in evaluation mode, without gradients.

    Attributes:
        preprocessing: the square of pixels `forward` wants, and the normalisation that it applies itself.
        grid: patches per column and row; N is their product.
        width: D, the channels of a feature.
        digest: SHA-256 of the trunk's tensors and dilation; "" on the meta device.
        precision: as in the options; part of the result, not of the digest.
    """

    trunk: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self, trunk: nn.Module, *, architecture: "Architecture", options: ClipOptions, compile_trunk: bool = False
    ):
        super().__init__()
        self.trunk = trunk.eval().requires_grad_(False)
        self.name = options.model
        self.preprocessing = architecture.preprocessing
        self.grid = clip_grid(architecture.preprocessing.image_size, options.dilate_last_stage)
        self.width = architecture.width * 32
        self.precision = options.precision
        on_meta = any(tensor.is_meta for tensor in trunk.parameters())
        self.digest = "" if on_meta else trunk_digest(trunk, dilated=options.dilate_last_stage)
        self.register_buffer("mean", torch.tensor(self.preprocessing.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.preprocessing.std).view(3, 1, 1), persistent=False)
        self._run_trunk = torch.compile(self._last_stage) if compile_trunk else self._last_stage

    def train(self, mode: bool = True) -> "ClipPatchEncoder":
        """Stay frozen: batch statistics would make a feature depend on its neighbours in the batch."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "B 3 S S"]) -> Float16[Tensor, "B N D"]:
        """Features of 8-bit RGB images, rounded to float16: what a store keeps and what k-means sees.

        A value that does not fit becomes inf; whether to ask `torch.isfinite`, and when to wait for it, is the
        caller's choice.

        Raises:
            ModelError: not 8-bit, or not of `preprocessing.image_size`.
        """
        require_pixels(images, self.preprocessing.image_size, name=self.name)
        with arithmetic(self.precision, images.device):
            features = self._run_trunk(normalised(images, self.mean, self.std))
        return features.flatten(2).transpose(1, 2).to(torch.float16).contiguous()

    def _last_stage(self, pixels: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B D H W"]:
        output = self.trunk.forward_intermediates(pixels, indices=[LAST_STAGE], intermediates_only=True)
        return output["image_intermediates"][0]


def load_clip(
    options: ClipOptions, *, device: torch.device | str = "cpu", compile_trunk: bool = False
) -> ClipPatchEncoder:
    """The encoder with its weights, on `device`; `compile_trunk` trades a first slow batch for speed.

    Raises:
        ModelError: unknown model or tag, weights that cannot be had, or that do not fit; says what to do.
    """
    architecture = _architecture(options)
    trunk = _build_trunk(architecture, dilate=options.dilate_last_stage).to_empty(device="cpu")
    _load_weights(trunk, options)
    encoder = ClipPatchEncoder(trunk, architecture=architecture, options=options, compile_trunk=compile_trunk)
    device = torch.device(device)
    if device.type == "cuda":
        encoder.trunk.to(memory_format=torch.channels_last)
    elif options.precision == "fp16":
        logger.info("%s: fp16 needs a GPU; on %s the tower computes in fp32", encoder.name, device)
    return encoder.to(device)


def outline_clip(options: ClipOptions) -> ClipPatchEncoder:
    """The encoder on the meta device: its grid, width and preprocessing, and shapes through it, without any weights.

    Raises:
        ModelError: unknown model.
    """
    architecture = _architecture(options)
    trunk = _build_trunk(architecture, dilate=options.dilate_last_stage)
    return ClipPatchEncoder(trunk, architecture=architecture, options=options).to("meta")


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
    """Both towers as they were trained, on the CPU; `image_size` and `dilate_last_stage` belong to patches and are not
    looked at.

    Raises:
        ModelError: as `load_clip`; also random weights, no text tower, or not the one of open_clip's plain `CLIP`.
    """
    import open_clip

    if not options.pretrained:
        raise ModelError(f"{options.model}: random weights know no words; set clip.pretrained")
    preprocessing = _architecture(options.model_copy(update={"image_size": None})).preprocessing
    path, config = _weights_file(options), _config(options)
    # The names without -quickgelu would run OpenAI's weights with an activation that they were not trained with.
    quick = is_torchscript(path) or config["preprocess_cfg"].get("quick_gelu") or config.get("quick_gelu")
    parts = {name: config.get(name) for name in ("embed_dim", "vision_cfg", "text_cfg")} | {"quick_gelu": bool(quick)}
    try:
        with torch.random.fork_rng(devices=[]):  # layers draw weights, which are overwritten
            model = open_clip.CLIP(**parts).eval().requires_grad_(False)
        tokenizer = open_clip.get_tokenizer(options.model)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        what = "no text tower that open_clip's CLIP could be built with"
        raise ModelError(f"CLIP model {options.model!r} has {what} ({in_short(error)})") from error
    fill_clip(model, _read_weights(path), source=f"{path} ({options.model})")
    return WholeClip(model, tokenizer, preprocessing, clip_digest(model, parts))


@torch.no_grad()
def class_features(
    clip: WholeClip, class_names: Sequence[str], templates: Sequence[Template]
) -> Float[Tensor, "D classes"]:
    """A unit column for each class, the normalised mean of its captions' features, on the model's device (Radford et
    al. 2021, section 3.1.4)."""
    from open_clip import build_zero_shot_classifier

    device = next(clip.model.parameters()).device
    return build_zero_shot_classifier(clip.model, clip.tokenizer, class_names, templates, device=device).float()


def openai_templates(name: Literal["openai", "simple"]) -> tuple[Template, ...]:
    """OpenAI's captions for ImageNet: all 80, or the 7 that do nearly as well."""
    import open_clip

    named = {"openai": open_clip.OPENAI_IMAGENET_TEMPLATES, "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES}
    return tuple(named[name])


def imagenet_class_names() -> tuple[str, ...]:
    """OpenAI's names of the 1000 classes, in the order of the sorted wnids."""
    import open_clip

    return tuple(open_clip.IMAGENET_CLASSNAMES)


@dataclass(frozen=True)
class Architecture:
    """What open_clip's configuration says of an image tower: `width` of the stem, blocks per stage, input."""

    layers: tuple[int, ...]
    width: int
    preprocessing: Preprocessing


def _architecture(options: ClipOptions) -> Architecture:
    config = _config(options)
    vision = config["vision_cfg"]
    layers = vision.get("layers")
    if not isinstance(layers, list) or "timm_model_name" in vision:
        raise ModelError(
            f"CLIP model {options.model!r} has no residual stages; k-CLIP needs a ModifiedResNet: {_resnets()}"
        )
    size = options.image_size or vision.get("image_size", 224)
    return Architecture(tuple(layers), vision.get("width", 64), _preprocessing(options, size, config["preprocess_cfg"]))


def _preprocessing(options: ClipOptions, size: int, config: Mapping[str, Any]) -> Preprocessing:
    import open_clip

    if config.get("resize_mode", "shortest") != "shortest":
        raise ModelError(f"CLIP model {options.model!r}: resize_mode {config['resize_mode']!r}, expected 'shortest'")
    mean, std = config.get("mean", open_clip.OPENAI_DATASET_MEAN), config.get("std", open_clip.OPENAI_DATASET_STD)
    return Preprocessing(size, tuple(mean), tuple(std), config.get("interpolation", "bicubic"))


def _config(options: ClipOptions) -> dict[str, Any]:
    """open_clip's `model_cfg`, and beside it `preprocess_cfg`."""
    return _read_local_config(options.model) if options.model.startswith(LOCAL_DIR) else _read_named_config(options)


def _read_named_config(options: ClipOptions) -> dict[str, Any]:
    import open_clip

    names = open_clip.list_models()
    if options.model not in names:
        close = difflib.get_close_matches(options.model, names, cutoff=0.5) or [_resnets()]
        raise ModelError(f"open_clip has no model {options.model!r}; close to it: {', '.join(close)}")
    tag = open_clip.get_pretrained_cfg(options.model, options.pretrained)
    return {**open_clip.get_model_config(options.model), "preprocess_cfg": tag}


def _resnets() -> str:
    import open_clip

    return ", ".join(name for name in open_clip.list_models() if name.startswith("RN"))


def _read_local_config(model: str) -> dict[str, Any]:
    path = Path(model.removeprefix(LOCAL_DIR)) / "open_clip_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        parts = config["model_cfg"]
        return {**parts, "vision_cfg": parts["vision_cfg"], "preprocess_cfg": config.get("preprocess_cfg", {})}
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = "expected open_clip's configuration with model_cfg.vision_cfg"
        raise ModelError(f"{path}: {what} ({in_short(error)})") from error


def _build_trunk(architecture: Architecture, *, dilate: bool) -> nn.Module:
    from open_clip.modified_resnet import ModifiedResNet

    with torch.device("meta"):
        trunk = ModifiedResNet(list(architecture.layers), output_dim=1, heads=1, width=architecture.width)
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


def _load_weights(trunk: nn.Module, options: ClipOptions) -> None:
    if not options.pretrained:
        draw_trunk(trunk)
        return
    path = _weights_file(options)
    fill_trunk(trunk, _read_weights(path), source=f"{path} ({options.model})")


def _read_weights(path: Path) -> dict[str, Tensor]:
    return _read_archive(path) if is_torchscript(path) else read_checkpoint(path)


def _weights_file(options: ClipOptions) -> Path:
    import open_clip

    path = Path(options.pretrained).expanduser()
    if path.is_file():
        return path
    if options.model.startswith(LOCAL_DIR):
        return _only_weights_in(Path(options.model.removeprefix(LOCAL_DIR)))
    tag = open_clip.get_pretrained_cfg(options.model, options.pretrained)
    if not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(options.model)) or "none"
        raise ModelError(
            f"{options.model}: {options.pretrained!r} is neither a file nor a tag of open_clip (tags: {tags}); "
            "give a tag or the path of a checkpoint"
        )
    return _download(options, tag)


def _only_weights_in(directory: Path) -> Path:
    found = sorted(path for path in directory.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ModelError(f"{directory}: expected one file of weights ({', '.join(WEIGHT_SUFFIXES)}), found: {names}")
    return found[0]


def _download(options: ClipOptions, tag: Mapping[str, Any]) -> Path:
    import open_clip

    try:
        return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # hub, HTTP, URL, checksum and disk each have errors of their own
        urls = [tag["url"]] if tag.get("url") else []
        if tag.get("hf_hub"):
            urls.append(f"https://huggingface.co/{tag['hf_hub'].rstrip('/')} (open_clip_model.safetensors)")
        raise ModelError(
            f"{options.model}: the weights {options.pretrained!r} could not be fetched ({in_short(error)}); "
            f"without a connection, bring {' or '.join(urls)} and set clip.pretrained to the path of that file"
        ) from error


def _read_archive(path: Path) -> dict[str, Tensor]:
    """OpenAI's TorchScript archive, through the library's own loader; its weights are float16, returned as float32."""
    import open_clip

    try:
        state: dict[str, Tensor] = open_clip.load_openai_model(str(path), precision="fp32", device="cpu").state_dict()
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: not a CLIP archive of OpenAI ({in_short(error)}); copy it again") from error
    return state
