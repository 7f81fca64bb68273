"""What every stage of every preset is fingerprinted as, and what small ones make, as it was recorded.

A change of the code that is to change no result changes neither. One that is to is recorded anew, with the reason in
the commit:

    python -m tests.pipeline.test_recorded
"""

import json
import platform
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from models.objectives import OBJECTIVES
from pipeline.configuration.presets import PRESETS
from storage.files import sha256_text
from tests.builds import build, make_photos, small_config
from tests.imagined import fingerprints, imagined_images
from tests.stages import TokenizedImages
from tests.trainings import small_pretraining

RECORDED = Path(__file__).parents[1] / "data" / "recorded.json"
ALL = [(flow, preset) for flow, presets in PRESETS.items() for preset in presets]


@cache
def recorded() -> dict[str, Any]:
    contents: dict[str, Any] = json.loads(RECORDED.read_text())
    return contents


def this_machine() -> dict[str, str]:
    """Name the rounding that the bytes have: a processor with other instructions adds in another order."""
    told = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else [platform.processor()]
    words = [line for line in told if line.startswith(("model name", "flags", "microcode"))]
    return {"torch": torch.__version__, "cpu": sha256_text("\n".join(sorted(set(words))))[:16]}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imagined_images(tmp_path_factory.mktemp("imagined"))


@pytest.mark.parametrize(("flow", "preset"), ALL)
def test_every_stage_of_a_preset_has_the_fingerprint_it_had(
    flow: str, preset: str, images: Path, tmp_path: Path
) -> None:
    assert fingerprints(flow, preset, images, tmp_path) == recorded()["fingerprints"][f"{flow}/{preset}"]


def made(folder: Path) -> dict[str, str]:
    """Return the digests of a small build, and of a small pre-training with each objective, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = small_config(make_photos(folder / "photos"), folder / "clip")
    result = build(config, folder / "root")
    found = {one.stage: one.artifact.digest for one in result.results if one.stage != "report"}
    tokens = TokenizedImages(result["index_images"].artifact, config.images, result["tokenize_images"].artifact)
    for name in OBJECTIVES:
        trained = small_pretraining(tokens, folder / "root", f"pretrain.objective={name}")
        found[f"pretrain {name}"] = trained.artifact.digest
    torch.set_num_threads(threads)
    return found


def test_small_artifacts_have_the_bytes_they_had(tmp_path: Path) -> None:
    expected = recorded()["digests"]
    if (here := this_machine()) != (there := {name: expected[name] for name in here}):
        pytest.skip(f"recorded with {there}, here is {here}")
    assert made(tmp_path) == expected["of"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        seen = imagined_images(root / "imagined")
        found = {f"{flow}/{preset}": fingerprints(flow, preset, seen, root / flow / preset) for flow, preset in ALL}
        contents = {"fingerprints": found, "digests": {**this_machine(), "of": made(root / "made")}}
    RECORDED.write_text(json.dumps(contents, indent=1) + "\n")
