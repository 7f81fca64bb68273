"""What a recipe says of a network, without loading it each time.

A digest is of all weights, so the first time a network is loaded for it. Then it stands in the data root beside path,
size and time of change of the files that it came from, and holds as long as these are what they were. Whoever encodes
compares it once more with the network that it loads (`pipeline/encoding/networks.py`).
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models.options import Options
from models.tokenizers.registry import tokenizer_of
from pipeline.engine.settings import Settings
from storage.files import canonical_json, sha256_text, write_whole
from storage.layout import Layout

# Whose change may change a digest: how weights are drawn, what an architecture is; and, as a number, what we look at.
_LIBRARIES, _FACTS = ("torch", "timm", "open_clip_torch"), 2


@dataclass(frozen=True)
class NetworkFacts:
    """What is to be known of a network before it works.

    Attributes:
        digest: of its weights.
        outputs: how many numbers a patch's feature has, or how many tokens there are.
        definition: the choices beside the weights that define a result.
    """

    name: str
    digest: str
    parameters: int
    outputs: int
    definition: Mapping[str, Any]

    @property
    def patches(self) -> int:
        """How many patches it sees in an image."""
        return math.prod(self.definition["grid"])


def facts_of(options: Options, settings: Settings) -> NetworkFacts:
    """Look up what is to be known of a network, or load it to find out. Raises ModelError where it cannot be had."""

    def load() -> dict[str, Any]:
        from pipeline.encoding.networks import (  # torch, for what is new here
            network_definition,
            network_for,
            output_count,
            parameter_count,
        )

        network = network_for(options, settings)
        counts = parameter_count(network), output_count(network)
        return asdict(NetworkFacts(network.name, network.digest, *counts, dict(network_definition(network))))

    return NetworkFacts(**remembered("network", options, settings.layout, load))


def remembered(what: str, options: Options, layout: Layout, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `find` returns for the network of these options: plain JSON values, kept as long as its files are the
    same.

    Args:
        what: what is found out, in a word.
    """
    place = _place(what, options, layout)
    known = _known(place, options)
    if known is not None:
        return known
    files, found = _sizes_and_times(tokenizer_of(options).files(options)), find()
    place.parent.mkdir(parents=True, exist_ok=True)
    # In the order of before: a store's attributes are bytes of an artifact.
    write_whole(place, json.dumps({"files": files, "found": found}, indent=1).encode())
    return found


def are_remembered(options: Options, layout: Layout) -> bool:
    """Return whether `facts_of` would load nothing. Raises ModelError where the network cannot be had."""
    return _known(_place("network", options, layout), options) is not None


def _place(what: str, options: Options, layout: Layout) -> Path:
    made_by = {**_library_versions(), "facts": _FACTS}
    key = {"what": what, "kind": type(options).__name__, "options": options.model_dump(mode="json"), **made_by}
    return layout.network(sha256_text(canonical_json(key))[:16])


@cache  # each is read from a file, and a plan asks for every network
def _library_versions() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}


def _known(place: Path, options: Options) -> dict[str, Any] | None:
    """Return what is remembered; None where nothing is, or the files are others now."""
    try:
        known: dict[str, Any] = json.loads(place.read_text())
        return (
            dict(known["found"]) if known["files"] == _sizes_and_times(tokenizer_of(options).files(options)) else None
        )
    except (OSError, ValueError, LookupError, TypeError):  # not there, or not whole: it is found out again
        return None


def _sizes_and_times(files: Iterable[Path]) -> list[list[Any]]:
    """Return path, size and time of change of each file; one that is not there is left out: whoever loads it says
    so."""
    there = [file.absolute() for file in files if file.is_file()]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in there]
