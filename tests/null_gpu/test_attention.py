"""Which of torch's kernels compute attention, by card and setting, on GPUs that compute nothing."""

import json
import logging
import os
import pickle
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from models.encoders.options import RawPatchOptions
from models.vit.attention import attend
from models.vit.windows import SlidingWindow, attend_in_windows
from pipeline.encoding.networks import encoder_for
from pipeline.engine.settings import Settings
from pipeline.training.launch import OUTCOME, WORK
from pipeline.training.worker import _train
from tests.null_gpu.gpus import needs_cuda_build, with_gpus

CHOICES = ("auto", "flash", "efficient", "cudnn", "math")
WAYS = ("blocks", "windows", "flex")
Call = tuple[int, int, bool]  # rows, keys, whether there is a mask
USUAL: list[Call] = [(491, 344, True), (197, 197, False)]  # of MaPeT and of MIM
REPORTED: list[Call] = [(320, 320, True), (10, 192, True), (64, 344, True), (1, 128, False)]
NOT_REPORTED: list[Call] = [(320, 320, False), (384, 384, True)]
Kernels = dict[str, list[str]]  # of each choice, by call


def kernel_of(rows: int, keys: int, masked: bool) -> str:
    queries, content = (
        torch.zeros(1, 3, count, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True) for count in (rows, keys)
    )
    mask = torch.ones(rows, keys, dtype=torch.bool, device="cuda") if masked else None
    try:
        found = attend(queries, content, content, mask)
    except RuntimeError:
        return "cudnn"  # which cannot be had here
    assert found.grad_fn is not None
    name = found.grad_fn.name()
    return next((kind for kind in ("flash", "efficient") if f"{kind.title()}Attention" in name), "math")


def of_windows(dtype: torch.dtype) -> list[str]:
    """Return the kernels whose gradients MaPeT's windows take, once each; the backward pass runs too."""
    window = SlidingWindow(197, 147, width=197)
    queries, content = (
        torch.zeros(1, 3, count, 64, dtype=dtype, device="cuda", requires_grad=True)
        for count in (window.rows, window.keys)
    )
    found = attend_in_windows(queries, content, content, window)
    found.sum().backward()
    assert queries.grad is not None
    assert queries.grad.shape == queries.shape
    todo, names = [found.grad_fn], set[str]()
    while todo:
        if (node := todo.pop()) is not None:
            names.add(node.name())
            todo += [before for before, _ in node.next_functions]
    return sorted(name.removesuffix("0").removesuffix("Backward") for name in names if re.search("ttention|Comp", name))


def kernels() -> Kernels:
    logging.basicConfig()
    found = {}
    for way in WAYS:
        Settings(device="cuda", attention=way).torch_device()
        for dtype in (torch.bfloat16, torch.float32)[: 1 if way == "flex" else 2]:  # which is compiled for each
            found[f"{way} {str(dtype).removeprefix('torch.')}"] = of_windows(dtype)
    for choice in CHOICES:
        Settings(device="cuda", attention=choice).torch_device()
        found[choice] = [kernel_of(*call) for call in USUAL + REPORTED + NOT_REPORTED]
    return found


@pytest.fixture(scope="module", params=[80, 90])
def on_card(request: pytest.FixtureRequest, folder: Path) -> tuple[int, Kernels, str]:
    """Compute capability, kernels, and what is said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NULL_CC", str(request.param))
        patch.setenv("NULL_CUDNN", "1")
        return request.param, *with_gpus(kernels, gpus=1, folder=folder)


@needs_cuda_build
def test_cudnn_attends_only_when_asked_for_and_where_torch_takes_it(on_card: tuple[int, Kernels, str]) -> None:
    capability, found, said = on_card
    usual = {choice: found[choice][: len(USUAL)] for choice in CHOICES}
    assert usual == {
        "auto": ["efficient", "flash"],
        "flash": ["efficient", "flash"],
        "efficient": ["efficient", "efficient"],
        "cudnn": ["cudnn", "cudnn"] if capability == 90 else ["efficient", "flash"],
        "math": ["math", "math"],
    }
    assert said.count("settings.attention=cudnn: torch takes cuDNN's") == (capability == 80)


@needs_cuda_build
def test_shapes_with_reported_nan_gradients_never_go_to_cudnn(on_card: tuple[int, Kernels, str]) -> None:
    capability, found, _ = on_card
    others = ["cudnn", "cudnn"] if capability == 90 else ["flash", "efficient"]
    assert found["cudnn"][len(USUAL) :] == ["efficient", "efficient", "efficient", "flash", *others]
    assert set(found["math"]) == {"math"}


@needs_cuda_build
def test_windows_are_attended_to_as_the_settings_say(on_card: tuple[int, Kernels, str]) -> None:
    _, found, _ = on_card
    flash, efficient, own = "ScaledDotProductFlashAttention", "ScaledDotProductEfficientAttention", "FlashAttention"
    assert found["blocks bfloat16"] == [efficient, flash]
    assert found["blocks float32"] == found["windows float32"] == [efficient]
    assert found["windows bfloat16"] == [own, flash]
    assert found["flex bfloat16"] == ["CompiledFunction"], "one call for all rows"


def switches(*_: object) -> dict[str, bool]:
    return {"flash": torch.backends.cuda.flash_sdp_enabled(), "math": torch.backends.cuda.math_sdp_enabled()}


def of_processes(folder: str) -> Mapping[str, Any]:
    """Return what is switched on: after an encoder was loaded, and in a worker that torchrun starts (over gloo)."""
    encoder_for(RawPatchOptions(), Settings(device="cuda", attention="efficient", data_root=Path(folder)))
    found = {"encoder": switches()}
    begin = dist.init_process_group
    dist.init_process_group = lambda _, **named: begin("cpu:gloo,cuda:gloo", timeout=named["timeout"])
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    (Path(folder) / WORK).write_bytes(pickle.dumps(partial(switches)))
    for choice in ("auto", "efficient"):
        assert _train("cuda", choice, Path(folder)) == 0
        found[choice] = json.loads((Path(folder) / OUTCOME).read_text())["notes"]
    return found


@needs_cuda_build
def test_encoders_and_workers_of_torchrun_attend_as_the_settings_say(folder: Path, tmp_path: Path) -> None:
    found, _ = with_gpus(of_processes, str(tmp_path), gpus=1, folder=folder)
    assert found["encoder"] == found["efficient"] == {"flash": False, "math": True}
    assert found["auto"] == {"flash": True, "math": True}
