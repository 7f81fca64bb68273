"""Where a CLIP comes from: its configuration and its weights, by a name of open_clip, a directory or a file.

The configuration is open_clip's `model_cfg` (embed_dim, vision_cfg, text_cfg, ...), with the `preprocess_cfg` of the
weights beside it.
"""

import difflib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from models.clip.options import LOCAL_DIR
from models.clip.weight_files import CONFIG
from models.clip.weights import is_torchscript
from models.encoders.preprocessing import Preprocessing
from models.errors import ModelError, in_short
from models.weights.state_files import read_checkpoint

# What of a configuration changes no feature.
_PASSED_OVER = {
    "patch_dropout",
    "timm_drop",
    "timm_drop_path",
    "timm_model_pretrained",
    "hf_model_pretrained",
    "output_tokens",
}

Config = Mapping[str, Any]
logger = logging.getLogger(__name__)


def read_config(model: str, *, pretrained: str) -> Config:
    """Read `model_cfg`, and beside it `preprocess_cfg`, which depends on the tag.

    Weights that are given as a file may have their own configuration beside them: their preprocessing and activation
    are its.

    Raises:
        ModelError: open_clip has no such model, or a directory no configuration.
    """
    if model.startswith(LOCAL_DIR):
        config = _read_config_file(Path(model.removeprefix(LOCAL_DIR)) / CONFIG)
    else:
        config = _read_named_config(model, pretrained)
    weights = Path(pretrained).expanduser()
    return _as_described(config, weights, model) if weights.is_file() else config


def require_described(config: Config, weights: Path, *, model: str, towers: Sequence[str] = ("vision_cfg",)) -> None:
    """Hold an architecture, into which the weights fit, to the configuration beside them: shapes do not tell all.

    Args:
        towers: that are used.

    Raises:
        ModelError: they were made for another one.
    """
    own = _own_config(weights)
    if own is None:
        return
    before, now = _architecture(config, towers), _architecture(own, towers)
    if differing := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
        first, more = differing[0], f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise ModelError(
            f"{weights.parent / CONFIG}: the weights beside it have {first} {now.get(first)!r}{more}, {model} has "
            f"{before.get(first)!r}; set clip.model to {LOCAL_DIR}{weights.parent}, or, if it tells of other weights, "
            "move these to a folder of their own"
        )


def read_preprocessing(config: Config, *, model: str, image_size: int | None = None) -> Preprocessing:
    """Read what the image tower was trained to see; `image_size` in place of the size it was trained at.

    Raises:
        ModelError: it was trained on images that were not cut to a square of one size.
    """
    import open_clip

    seen = config["preprocess_cfg"]
    mode = seen.get("resize_mode", "shortest")
    if mode == "squash":
        logger.info("%s was trained on images squashed to a square; its patches are those of the central square", model)
    elif mode != "shortest":
        raise ModelError(f"CLIP model {model!r}: resize_mode {mode!r}, expected 'shortest' or 'squash'")
    size = image_size or config["vision_cfg"].get("image_size", 224)
    if not isinstance(size, int):
        raise ModelError(f"CLIP model {model!r}: image_size {size!r}, expected one number, the side of a square")
    mean, std = seen.get("mean", open_clip.OPENAI_DATASET_MEAN), seen.get("std", open_clip.OPENAI_DATASET_STD)
    # As open_clip reads them: one number for all channels, and "random", a choice of training, is bicubic.
    mean, std = (value if isinstance(value, list | tuple) else (value,) * 3 for value in (mean, std))
    interpolation = "bilinear" if seen.get("interpolation") == "bilinear" else "bicubic"
    return Preprocessing(size, tuple(mean), tuple(std), interpolation)


def uses_quick_gelu(config: Config, weights: Path | None) -> bool:
    """Return whether the weights were trained with OpenAI's approximation of GELU, x * sigmoid(1.702 x).

    The names without -quickgelu would run OpenAI's weights with an activation that they were not trained with, so an
    archive of OpenAI and a tag that knows better overrule the name. None stands for weights that are drawn.
    """
    archive = weights is not None and is_torchscript(weights)
    return bool(archive or config["preprocess_cfg"].get("quick_gelu") or config.get("quick_gelu"))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a whole CLIP, in whichever form it was published.

    Raises:
        ModelError: not a readable checkpoint.
    """
    return _read_archive(path) if is_torchscript(path) else read_checkpoint(path)


def residual_names() -> str:
    """Return the residual CLIPs that open_clip has, for messages."""
    import open_clip

    return ", ".join(name for name in open_clip.list_models() if name.startswith("RN"))


def _read_named_config(model: str, pretrained: str) -> Config:
    import open_clip

    names = open_clip.list_models()
    if model not in names:
        close = difflib.get_close_matches(model, names, cutoff=0.5) or [residual_names()]
        raise ModelError(f"open_clip has no model {model!r}; close to it: {', '.join(close)}")
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    return {**open_clip.get_model_config(model), "preprocess_cfg": tag}


def _own_config(weights: Path) -> Config | None:
    """Read the configuration that lies beside a file of weights, if one does."""
    path = weights.parent / CONFIG
    return _read_config_file(path) if path.is_file() else None


def _as_described(config: Config, weights: Path, model: str) -> Config:
    """Complete the `config` of `model` by the preprocessing and the activation that a configuration beside the weights
    names."""
    own = _own_config(weights)
    if own is None:
        return config
    quick = bool(own.get("quick_gelu"))
    if config.get("quick_gelu") and not quick:
        beside = weights.parent / CONFIG
        logger.warning("%s: the weights beside it run without quick_gelu, which %s has in its name", beside, model)
    return {**config, "quick_gelu": quick, "preprocess_cfg": own["preprocess_cfg"]}


def _architecture(config: Config, towers: Sequence[str]) -> dict[str, Any]:
    """Flatten what two configurations must agree in to be of one network, with open_clip's defaults."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    flat = {"embed_dim": config.get("embed_dim")}
    classes = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg}
    for part in towers:
        values = {**asdict(classes[part]()), **(config.get(part) or {})}
        residual = isinstance(values["layers"], list | tuple)
        ignored = _PASSED_OVER | ({"patch_size"} if residual else set())
        flat |= {f"{part}.{name}": value for name, value in values.items() if name not in ignored}
    return {name: list(value) if isinstance(value, tuple) else value or None for name, value in flat.items()}


def _read_config_file(path: Path) -> Config:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        parts = config["model_cfg"]
        return {**parts, "vision_cfg": parts["vision_cfg"], "preprocess_cfg": config.get("preprocess_cfg", {})}
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = "expected open_clip's configuration with model_cfg.vision_cfg"
        raise ModelError(f"{path}: {what} ({in_short(error)})") from error


def _read_archive(path: Path) -> dict[str, Tensor]:
    """Read OpenAI's TorchScript archive by the library's own loader; its float16 weights become float32."""
    import open_clip

    try:
        state: dict[str, Tensor] = open_clip.load_openai_model(str(path), precision="fp32", device="cpu").state_dict()
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: not a CLIP archive of OpenAI ({in_short(error)}); copy it again") from error
    return state
