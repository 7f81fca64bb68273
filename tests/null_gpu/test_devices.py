"""Which device is taken, and what is said about it, on a machine with two GPUs (that compute nothing)."""

import contextlib
import gc
import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models.kmeans.clustering as kmeans
import pipeline.encoding.features as features
from models.encoders.options import RawPatchOptions
from models.encoders.raw_patches import RawPatchEncoder
from models.kmeans.clustering import fit_kmeans
from models.kmeans.options import CodebookOptions
from pipeline.chains.by_name import CHAINS
from pipeline.chains.sharing import sharing_of
from pipeline.configuration.presets import preset
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.source_options import ImageSourceOptions
from pipeline.encoding.feature_options import FeatureOptions
from pipeline.engine.devices import chosen_device, require_gpus, say_device, say_gpus, say_idle_gpus
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from tests.builds import make_photos
from tests.null_gpu.gpus import needs_cuda_build, with_gpus
from tests.null_gpu.watched import WatchedEncoding
from tests.stages import extract_features, index_images


def choices() -> dict[str, Any]:
    logging.basicConfig(level=logging.INFO)
    chosen: dict[str, Any] = {}
    for wanted in ("auto", "cpu", "cuda:1", "cuda:2", "mps", "meta", "fridge"):
        try:
            chosen[wanted] = chosen_device(wanted)
        except PipelineError as error:
            chosen[wanted] = str(error)
    for device, processes in (("cuda", 2), ("cpu", 9), ("cuda", 3), ("cuda:1", 2)):
        try:
            chosen[f"{processes} on {device}"] = require_gpus(device, processes)
        except PipelineError as error:
            chosen[f"{processes} on {device}"] = str(error)
    for device in ("cuda", "cuda", "cuda:1"):
        say_idle_gpus(device, "settings.processes=2")
        say_gpus(2, wanted=2)
    say_gpus(1, wanted=1)
    return chosen


@needs_cuda_build
def test_devices_that_cannot_be_had_are_refused_with_what_could_be_had(folder: Path) -> None:
    chosen, said = with_gpus(choices, folder=folder)
    assert (chosen["auto"], chosen["cpu"], chosen["cuda:1"]) == ("cuda", "cpu", "cuda:1")
    assert chosen["cuda:2"] == "settings.device=cuda:2: torch finds 2 GPUs here; set it to cpu or auto"
    for unknown in ("mps", "meta", "fridge"):
        assert chosen[unknown] == f"settings.device={unknown!r}: expected cpu, cuda, cuda:1, ... or auto"
    assert chosen["2 on cuda"] is None
    assert chosen["9 on cpu"] is None
    assert "torch finds 2 GPUs here, and each process takes one; set it to 2 or less" in chosen["3 on cuda"]
    assert "settings.device=cuda:1 names one GPU" in chosen["2 on cuda:1"]
    assert said.count("one of this machine's 2 GPUs is used; settings.processes=2 uses all") == 1
    assert said.count("images are encoded by 2 processes, a GPU each") == 1
    assert said.count("1 of this machine's 2 GPUs encode images; settings.processes=2 uses all") == 1


def test_a_machine_without_a_gpu_is_told_once_why_it_computes_on_the_cpu(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for said in (chosen_device, say_device):
        said.cache_clear()
    with caplog.at_level(logging.INFO, "mapet.stages"):
        for _ in range(2):
            assert chosen_device("auto") == "cpu"
            say_device("auto")
    for said in (chosen_device, say_device):
        said.cache_clear()
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith("settings.device=auto: computing on the CPU, as ")


def shares() -> dict[str, Any]:
    """Return what jobs have of four GPUs, or why there is no room for them."""
    graph, found = CHAINS["reproduce"].graph(preset("reproduce", "table1")), {}
    for words in ("", "device=cuda:1", "jobs=2", "jobs=2 processes=2", "jobs=4 processes=2", "jobs=5", "processes=2"):
        settings = Settings(**dict(word.split("=") for word in words.split()))  # type: ignore[arg-type]
        try:
            sharing = sharing_of(graph, settings)
        except PipelineError as error:
            found[words] = str(error)
            continue
        taken = [environment.get("CUDA_VISIBLE_DEVICES") for environment in sharing.environments]
        found[words] = [sharing.words, taken, [node.name for node in graph.nodes if not sharing.has_place_for(node)]]
    return found


@needs_cuda_build
def test_each_job_has_gpus_of_its_own(folder: Path) -> None:
    found, _ = with_gpus(shares, gpus=4, folder=folder)
    none = ["index_images", "report"]  # takes no GPU's place
    assert found[""] == ["4 jobs at once (settings.jobs: one per GPU)", ["0", "1", "2", "3"], none]
    assert found["jobs=2"] == ["2 jobs at once (settings.jobs)", ["0", "1"], none]
    assert found["jobs=2 processes=2"] == ["2 jobs at once (settings.jobs)", ["0,1", "2,3"], none]
    assert found["processes=2"][0].startswith("1 job"), "a training takes the machine"
    assert found["device=cuda:1"][0].startswith("1 job")
    assert found["jobs=4 processes=2"] == (
        "settings.jobs=4 with settings.processes=2 wants 8 GPUs, there are 4 here; set settings.jobs to 2 or less"
    )
    assert found["jobs=5"] == "settings.jobs=5 wants 5 GPUs, there are 4 here; set settings.jobs to 4 or less"


def pickled(work: Any, shards: Any) -> Iterator[Any]:
    """Work on shards as another process would, but in this one."""
    yield pickle.loads(pickle.dumps(work))(shards)


def encoded_by(root: str, device: str, *, elsewhere: bool = False) -> dict[str, Any]:
    """Return what the stage itself makes of photographs, where that was computed, and what is left of it here."""
    logging.basicConfig(level=logging.INFO)
    settings = Settings(data_root=Path(root) / f"{device} {elsewhere}", device=device, workers=0, batch_size=4)
    workspace = Workspace(settings, map_shards=pickled if elsewhere else None)
    features.FeatureEncoding = WatchedEncoding  # type: ignore[misc]
    source = ImageSourceOptions(path=str(make_photos(settings.data_root / "photos", train=8, val=1)))
    source = source.model_copy(update={"images_per_shard": 8})
    images = index_images(source, workspace=workspace).artifact
    pixels = RawPatchOptions(image_size=32)
    named: dict[str, Any] = {"images": images, "source": source, "decoding": DecodingOptions()}
    made = extract_features(FeatureOptions(sample_fraction=0.5), encoder=pixels, workspace=workspace, **named).artifact
    places = sorted({tuple(json.loads(line)) for line in (settings.data_root / "log").read_text().splitlines()})
    return {
        "places": places,
        "images": made.summary["images"],
        "processes": made.notes["processes"],
        "afterwards": torch.cuda.current_device(),
        "networks": sum(isinstance(one, RawPatchEncoder) for one in gc.get_objects()),
    }


def encodings(root: str) -> dict[str, Any]:
    return {
        "usual": encoded_by(root, "auto"),
        "named": encoded_by(root, "cuda:1"),
        "named elsewhere": encoded_by(root, "cuda:1", elsewhere=True),
    }


@pytest.fixture(scope="module")
def encoded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """How images are encoded, and what is said of it."""
    return with_gpus(encodings, str(tmp_path_factory.mktemp("encoded")), folder=folder)


@needs_cuda_build
def test_images_are_encoded_by_a_process_for_each_gpu(encoded: tuple[dict[str, Any], str]) -> None:
    made, said = encoded[0]["usual"], encoded[1]
    assert made["places"] == [["0", 0, "cuda:0"], ["1", 0, "cuda:0"]], "each sees one, its own"
    assert (made["images"], made["processes"]) == (16, 2)
    assert said.count("images are encoded by 2 processes, a GPU each") == 1


@needs_cuda_build
def test_while_others_encode_a_process_holds_no_network(encoded: tuple[dict[str, Any], str]) -> None:
    assert encoded[0]["usual"]["networks"] == 0, "it was here for its digest"
    assert encoded[0]["named"]["networks"] == 1, "kept for the stage that comes next"


@needs_cuda_build
@pytest.mark.parametrize("which", ["named", "named elsewhere"])
def test_a_gpu_that_is_named_is_the_current_one_of_whatever_encodes(
    which: str, encoded: tuple[dict[str, Any], str]
) -> None:
    made = encoded[0][which]
    assert made["places"] == [[None, 1, "cuda:1"]]
    assert (made["images"], made["processes"], made["afterwards"]) == (16, 1, 0)
    assert "is used; settings.processes" not in encoded[1], "whoever names a GPU wants that one"


class Rows:
    """Ten vectors."""

    width = 4

    def __len__(self) -> int:
        return 10

    def read(self, start: int, stop: int) -> Any:
        return torch.arange(40.0).view(10, 4)[start:stop].numpy()


def clusters() -> int:
    return len(fit_kmeans(Rows(), CodebookOptions(vocabulary=2, iterations=1), device="cuda").centroids)


@needs_cuda_build
def test_kmeans_on_the_cpu_beside_a_gpu_is_said(folder: Path) -> None:
    faiss = pytest.importorskip("faiss")
    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("the installed FAISS searches on GPUs")
    found, said = with_gpus(clusters, folder=folder)
    assert found == 2
    assert said.count("k-means runs on the CPU though there is a GPU, many times slower") == 1


class WatchedRows(Rows):
    """Notes, whenever they are read, how many bytes of each GPU are taken."""

    def __init__(self) -> None:
        self.taken = [0, 0]

    def read(self, start: int, stop: int) -> Any:
        for gpu, before in enumerate(self.taken):
            free, total = torch.cuda.mem_get_info(gpu)
            self.taken[gpu] = max(before, total - free)
        return super().read(start, stop)


def taken_by_kmeans(mode: str) -> list[int]:
    kmeans.squared_norms = lambda *_, **__: np.ones(len(rows))  # the GPU's numbers are none
    rows = WatchedRows()
    # As many clusters as rows: FAISS's own k-means then believes no assignment, of which a wrong one would abort it.
    options = CodebookOptions(vocabulary=len(rows), iterations=1, mode=mode)  # type: ignore[arg-type]
    with contextlib.suppress(IndexError, ValueError):  # after the search, of what came of it
        fit_kmeans(rows, options, device="cuda:1")
    return rows.taken


@needs_cuda_build
@pytest.mark.parametrize("mode", ["lloyd", "reference"])
def test_kmeans_on_a_gpu_that_is_named_takes_no_other(mode: str, folder: Path) -> None:
    faiss = pytest.importorskip("faiss")
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("the installed FAISS knows no GPU")
    (first, second), _ = with_gpus(taken_by_kmeans, mode, folder=folder)
    assert first == 0
    assert second > 0
