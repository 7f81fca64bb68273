"""Where the configuration and the weights of a CLIP are: a directory, a file, or what a tag of open_clip names."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.clip.options import LOCAL_DIR
from models.errors import ModelError, in_short

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_OF_THE_HUB = (WEIGHTS, "open_clip_pytorch_model.bin")  # the same weights twice, so published
logger = logging.getLogger(__name__)


def find_weights(model: str, *, pretrained: str) -> Path:
    """Find the file of weights: `pretrained` itself, the directory's own, or the tag's, downloaded if need be.

    Raises:
        ModelError: there is no such file or tag, or it cannot be fetched; says which file to bring.
    """
    found = _weights_or_tag(model, pretrained)
    return found if isinstance(found, Path) else _download(found, name=f"{model}: the weights {pretrained!r}")


def files_of_weights(model: str, *, pretrained: str) -> tuple[Path, ...]:
    """Return the files that tell what a CLIP is: its weights, and the configuration beside them or of the directory.

    Raises ModelError as `find_weights`; weights that are drawn have no file.
    """
    found = [find_weights(model, pretrained=pretrained)] if pretrained else []
    folders = [Path(model.removeprefix(LOCAL_DIR))] if model.startswith(LOCAL_DIR) else []
    folders += [weights.parent for weights in found]
    beside = (folder / CONFIG for folder in dict.fromkeys(folders))
    return (*found, *(config for config in beside if config.is_file()))


def require_known_weights(model: str, *, pretrained: str) -> None:
    """Raise ModelError unless there is such a file or tag; nothing is fetched, unlike in `find_weights`."""
    if pretrained:
        _weights_or_tag(model, pretrained)


def _weights_or_tag(model: str, pretrained: str) -> Path | Mapping[str, Any]:
    """Return the file, or what open_clip knows of the tag."""
    path = Path(pretrained)
    if path.is_file():
        return path
    if model.startswith(LOCAL_DIR):
        return _only_weights_in(Path(model.removeprefix(LOCAL_DIR)))
    import open_clip

    tag: Mapping[str, Any] = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise ModelError(
            f"{model}: {pretrained!r} is neither a file nor a tag of open_clip (tags: {tags}); "
            "give a tag or the path of a checkpoint"
        )
    return tag


def _only_weights_in(directory: Path) -> Path:
    found = {path.name: path for path in sorted(directory.iterdir()) if path.suffix in WEIGHT_SUFFIXES}
    if len(found) == 1:
        return next(iter(found.values()))
    if set(found) == set(_OF_THE_HUB):
        logger.info("%s: taking %s, not %s; clip.pretrained chooses another", directory, *_OF_THE_HUB)
        return found[_OF_THE_HUB[0]]
    names = ", ".join(found) or "none"
    raise ModelError(
        f"{directory}: expected one file of weights ({', '.join(WEIGHT_SUFFIXES)}), found: {names}; choose one with "
        "clip.pretrained=/path/to/it"
    )


def _download(tag: Mapping[str, Any], *, name: str) -> Path:
    import open_clip

    try:
        return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # hub, HTTP, URL, checksum and disk each have errors of their own
        urls = [tag["url"]] if tag.get("url") else []
        if tag.get("hf_hub"):
            urls.append(f"https://huggingface.co/{tag['hf_hub'].rstrip('/')} ({WEIGHTS})")
        raise ModelError(
            f"{name} could not be fetched ({in_short(error)}); "
            f"without a connection, bring {' or '.join(urls)} and set clip.pretrained to the path of that file"
        ) from error
