"""Which device is taken, and what is said about it, on a machine with two GPUs (that compute nothing)."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from models.kmeans import CodebookOptions, fit_kmeans
from pipeline.devices import chosen_device, require_gpus, say_device, say_idle_gpus
from pipeline.errors import PipelineError
from pipeline.scale_out import DaskUnits
from pipeline.settings import Settings

RUN = Path(__file__).with_name("run")

needs_cuda_build = pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")


def with_gpus(function: Callable[..., Any], *arguments: Any, gpus: int = 2, folder: Path) -> tuple[Any, str]:
    """What a function of this module returns in a process that believes in GPUs, and what it says on stderr."""
    call = f"from {__name__} import *; print(json.dumps({function.__name__}(*{arguments!r})))"
    done = subprocess.run(
        [RUN, sys.executable, "-c", call],
        env={**os.environ, "NULL_GPUS": str(gpus), "NULL_GPU_BUILD": str(folder / "build")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("null_gpu")


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
    for _ in range(2):
        say_idle_gpus("cuda", "settings.processes=2")
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


def gpus_of_workers(root: str) -> list[list[Any]]:
    settings = Settings(data_root=Path(root), dask_address="local", dask_workers=2)
    return sorted(map(list, set(DaskUnits(settings)(visible_to_a_worker, list(range(8))))))


def visible_to_a_worker(units: Sequence[int]) -> tuple[str, int]:
    return os.environ["CUDA_VISIBLE_DEVICES"], torch.cuda.device_count()


@needs_cuda_build
def test_each_worker_of_a_local_cluster_has_a_gpu_of_its_own(folder: Path) -> None:
    seen, _ = with_gpus(gpus_of_workers, str(folder), folder=folder)
    assert seen == [["0", 1], ["1", 1]]


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
