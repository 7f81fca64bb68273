"""What is said of a network without loading it: as long as its files are what they were."""

import json
import os
from pathlib import Path

import pytest

from models.clip.encoder import load_clip
from models.clip.options import ClipOptions
from models.errors import ModelError
from pipeline.encoding.network_facts import NetworkFacts, facts_of
from pipeline.encoding.networks import network_definition, output_count, parameter_count, release_networks
from pipeline.engine.settings import Settings
from tests.tiny_clip import write_tiny_clip

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_tiny_clip(tmp_path / "clip")
    return tmp_path / "clip"


def facts(clip: Path, root: Path) -> NetworkFacts:
    release_networks()
    return facts_of(ClipOptions(model=f"local-dir:{clip}"), Settings(data_root=root, device="cpu"))


def spoil(weights: Path, *, later: bool) -> None:
    """Write other bytes, as many, and the time of before unless it is to be a later one."""
    before = weights.stat()
    weights.write_bytes(bytes(before.st_size))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + later))


def test_they_are_those_of_the_network_that_is_loaded(clip: Path, tmp_path: Path) -> None:
    network = load_clip(ClipOptions(model=f"local-dir:{clip}"))
    counts = parameter_count(network), output_count(network)
    expected = (network.name, network.digest, *counts, network_definition(network))
    for _ in range(2):  # loaded, and remembered
        found = facts(clip, tmp_path / "root")
        assert (found.name, found.digest, found.parameters, found.outputs, found.definition) == expected
        assert found.patches == network.grid[0] * network.grid[1]
        assert list(found.definition) == list(network_definition(network)), "it is written into token stores"


def test_a_network_that_was_loaded_once_is_not_loaded_for_its_digest(clip: Path, tmp_path: Path) -> None:
    first = facts(clip, tmp_path / "root")
    spoil(clip / WEIGHTS, later=False)
    assert facts(clip, tmp_path / "root") == first
    with pytest.raises(ModelError):
        facts(clip, tmp_path / "another root")


def test_weights_that_were_touched_are_looked_at_again(clip: Path, tmp_path: Path) -> None:
    facts(clip, tmp_path / "root")
    spoil(clip / WEIGHTS, later=True)
    with pytest.raises(ModelError):
        facts(clip, tmp_path / "root")


def test_a_configuration_that_was_changed_is_looked_at_again(clip: Path, tmp_path: Path) -> None:
    first = facts(clip, tmp_path / "root")
    config = clip / "open_clip_config.json"
    told = json.loads(config.read_text())
    told["preprocess_cfg"] = {**told.get("preprocess_cfg", {}), "interpolation": "bilinear"}
    config.write_text(json.dumps(told))
    assert facts(clip, tmp_path / "root").definition["interpolation"] == "bilinear"
    assert first.definition["interpolation"] == "bicubic"


def test_what_is_remembered_and_cannot_be_read_is_found_out_again(clip: Path, tmp_path: Path) -> None:
    first = facts(clip, tmp_path / "root")
    [remembered] = (tmp_path / "root/cache/networks").iterdir()
    for text in ("", "[]", "{}", '{"files": []}'):
        remembered.write_text(text)
        assert facts(clip, tmp_path / "root") == first
