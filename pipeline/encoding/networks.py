"""The networks that encode images, each loaded once by a process: patch encoders, whose features k-means clusters, and
tokenizers that need no k-means."""

import platform
from functools import lru_cache
from typing import Any

from models.encoders.base import PatchEncoder
from models.options import Options
from models.tokenizers.base import Tokenizer
from models.tokenizers.registry import tokenizer_of
from pipeline.engine.errors import PipelineError
from pipeline.engine.memory import SMALLER_NETWORK, give_memory_back, shortage_explained
from pipeline.engine.settings import Settings


def network_for(options: Options, settings: Settings) -> PatchEncoder | Tokenizer:
    """Load either kind. Raises as `encoder_for`."""
    load = encoder_for if tokenizer_of(options).clusters else tokenizer_for
    return load(options, settings)


def encoder_for(options: Options, settings: Settings, *, digest: str = "") -> PatchEncoder:
    """Load the encoder, or return the one this process has loaded.

    Args:
        digest: of the encoder that it has to be, where another process chose it.

    Raises:
        ModelError: it cannot be had.
        PipelineError: it is another one on this machine.
    """
    return _load_with_digest(_load_encoder, options, settings, digest)


@lru_cache(maxsize=1)  # RN50x64 takes seconds to load and gigabytes to keep: two stages share one
def _load_encoder(options: Options, device: str, compiled: bool) -> PatchEncoder:
    network = tokenizer_of(options).load(options, device, compiled)
    assert isinstance(network, PatchEncoder)
    return network


def tokenizer_for(options: Options, settings: Settings, *, digest: str = "") -> Tokenizer:
    """Load a tokenizer that is one network, as `encoder_for` an encoder."""
    return _load_with_digest(_load_tokenizer, options, settings, digest)


@lru_cache(maxsize=1)
def _load_tokenizer(options: Options, device: str, compiled: bool) -> Tokenizer:
    network = tokenizer_of(options).load(options, device, compiled)
    assert isinstance(network, Tokenizer)
    return network


def _load_with_digest(load: Any, options: Options, settings: Settings, digest: str) -> Any:
    """Return what the cached function `load` gives, loaded once more if its digest is not the one wanted: a worker of a
    Dask cluster lives long, and a file of weights may have been replaced since."""
    wanted = (options, settings.torch_device(), settings.compile)
    with shortage_explained("the network that encodes images", SMALLER_NETWORK):
        network = load(*wanted)
        if digest and network.digest != digest:
            load.cache_clear()
            network = load(*wanted)
    if digest and network.digest != digest:
        raise PipelineError(
            f"{platform.node()} has other weights for {network.name}: digest {network.digest[:12]}, the stage has "
            f"{digest[:12]}; give all workers the same files"
        )
    return network


def release_networks() -> None:
    """Let go of the networks that this process keeps, and give their memory back to the device.

    RN50x64 leaves 9 GiB reserved on a GPU after encoding, where a training is about to start.
    """
    _load_encoder.cache_clear()
    _load_tokenizer.cache_clear()
    give_memory_back()


def network_definition(network: PatchEncoder | Tokenizer) -> dict[str, object]:
    """Return the choices that define a result beside the weights of a network, whose digest is an input."""
    return {
        "precision": network.precision,
        "image_size": network.preprocessing.image_size,
        "mean": list(network.preprocessing.mean),
        "std": list(network.preprocessing.std),
        "interpolation": network.preprocessing.interpolation,
        "grid": list(network.grid),
    }


def parameter_count(network: PatchEncoder | Tokenizer) -> int:
    """Count the parameters of a network: two of the same definition and size are equally fast."""
    return sum(parameter.numel() for parameter in network.parameters())


def output_count(network: PatchEncoder | Tokenizer) -> int:
    """Return how many numbers a patch's feature has, or how many tokens there are."""
    return network.width if isinstance(network, PatchEncoder) else network.vocabulary
