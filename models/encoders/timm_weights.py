"""Where the configuration and the weights of a network of timm are: a directory, a file, or a name of timm's."""

from functools import cache
from pathlib import Path

from models.encoders.options import PACKAGED, PRETRAINED, EncoderOptions
from models.encoders.packaged_weights import packaged_file
from models.errors import ModelError, in_short

CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # as timm lays out a directory, the first that is there counts


def find_weights(options: EncoderOptions) -> Path | None:
    """Find the file of weights, which is fetched if need be; None for weights that are drawn.

    Raises:
        ModelError: there is none, or it cannot be fetched; says which file to bring.
    """
    if options.weights == PACKAGED:
        return packaged_file(options.timm)
    if options.weights not in ("", PRETRAINED):
        path = Path(options.weights)
        if not path.is_file():
            raise ModelError(f"encoder.weights: {path} is no file; give a checkpoint, {PRETRAINED} or {PACKAGED}")
        return path
    if not options.weights:
        return None
    return _in_directory(Path(options.timm)) if is_directory(options.timm) else _fetched(options.timm)


def files_of_weights(options: EncoderOptions) -> tuple[Path, ...]:
    """Return the files that tell what a network is: its weights, and the configuration of a directory.

    Raises ModelError as `find_weights`.
    """
    weights = find_weights(options)
    found = () if weights is None else (weights,)
    return (*found, Path(options.timm) / CONFIG) if is_directory(options.timm) else found


def is_directory(name: str) -> bool:
    """Return whether a network is named by a path: timm's names have no slash."""
    return "/" in name


def _in_directory(directory: Path) -> Path:
    found = [directory / name for name in _WEIGHTS if (directory / name).is_file()]
    if not found:
        raise ModelError(
            f"{directory}: expected weights in {' or '.join(_WEIGHTS)}; encoder.weights names another file"
        )
    return found[0]


@cache  # a plan asks for the files of each network more than once, and each question may go to the hub
def _fetched(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from timm import get_pretrained_cfg

    known = get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        raise ModelError(f"{name}: timm has no weights of that name; set encoder.weights to a file, or to nothing")
    repository, _, revision = known.hf_hub_id.partition("@")
    names = (known.hf_hub_filename,) if known.hf_hub_filename else _WEIGHTS
    try:
        for file in names[:-1]:
            try:
                return Path(hf_hub_download(repository, file, revision=revision or None))
            except LocalEntryNotFoundError:  # no connection; the library calls that an entry which is not found, too
                raise
            except EntryNotFoundError:  # published in the older form alone
                continue
        return Path(hf_hub_download(repository, names[-1], revision=revision or None))
    except Exception as error:  # the hub, HTTP and the disk each have errors of their own
        raise ModelError(
            f"{name}: its weights could not be fetched ({in_short(error)}); without a connection, bring {names[0]} of "
            f"https://huggingface.co/{repository} and set encoder.weights to the path of that file"
        ) from error
