"""A full disk, forbidden files, too little memory: one sentence, and later the same command goes on."""

import errno
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.kmeans import lloyd
from pipeline.engine.errors import PipelineError
from pipeline.engine.memory import is_out_of_memory, shortage_explained
from pipeline.training.history import read_history
from storage.artifact import list_artifacts
from storage.layout import Layout
from tests.commands import Said, mapet, without_privileges
from tests.faults.chain import SMALL_BUILD, SMALL_CHAIN, SMALL_TRAINING, Expected, published, wrong_results

MACHINE = ("settings.device=cpu", "settings.workers=0", "settings.batch_size=4", "settings.checkpoint_steps=3")


def build(root: Path, *words: str, shortage: Callable[[], None] | None = None) -> Said:
    """Return the first half of the chain, up to the tokens; its report is another one."""
    words = (f"settings.data_root={root}", *MACHINE, *SMALL_BUILD, *words)
    return mapet(root.parent / "said", "kclip-build", "demo", *words, shortage=shortage)


def chain(root: Path, *words: str, shortage: Callable[[], None] | None = None) -> Said:
    words = (f"settings.data_root={root}", *MACHINE, *SMALL_CHAIN, *words)
    return mapet(root.parent.parent / "said", "reproduce", "demo", *words, shortage=shortage)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of its own, whose size `resize` sets."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def resize(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", disk], check=True)


def test_a_full_disk_stops_the_chain_in_one_sentence_and_more_room_lets_it_go_on(
    small_disk: Path, expected: Expected
) -> None:
    root, ends = small_disk / "data", []
    for kilobytes in (2_000, 16_600, 17_800, 19_400, 60_000):
        resize(small_disk, kilobytes)
        said = chain(root, "settings.jobs=1")  # so that each size stops another stage
        ends.append(said.code)
        assert "Traceback" not in said.err, (kilobytes, said.err)
        assert said.code in (0, 1), (kilobytes, said.err)
        assert wrong_results(root, expected) == []
    assert ends[0] == 1, "or nothing was tried"
    assert ends[-1] == 0
    assert ends.count(1) >= 3
    assert wrong_results(root, expected, whole=True) == []


def limit_file_size(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_file_that_is_larger_than_the_file_system_takes_is_one_sentence(tmp_path: Path, expected: Expected) -> None:
    """Needs no root: the 13 MB of the demo's CLIP may not be written, all other files may."""
    root = tmp_path / "data"
    said = build(root, shortage=partial(limit_file_size, 5_000_000))
    assert said.code == 1, said.err
    assert said.last.startswith("mapet: error: File too large"), said.err
    assert said.last.endswith("what is done is kept, run it again")
    assert "Traceback" not in said.err
    assert {artifact.stage for artifact in published(root)} == {"make_demo_images", "index_images"}
    assert build(root).code == 0
    made = [problem for problem in wrong_results(root, expected) if "/report/" not in problem]
    assert made == []


def test_a_read_only_data_root_is_a_sentence_of_the_tracker_and_one_of_the_run(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    root.chmod(0o555)
    said = build(root, shortage=without_privileges)
    assert said.code == 1, said.err
    assert said.err.startswith(f"MLflow's database {root}/mlflow/mlflow.db cannot be used"), said.err
    assert said.last.startswith(f"mapet: error: Permission denied: {root}/"), said.err
    assert said.err.count("\n") == 2
    assert not list(root.iterdir())
    root.chmod(0o755)
    assert build(root, shortage=without_privileges).code == 0


def test_one_file_that_may_not_be_read_is_named_and_is_taken_as_it_is_once_it_may(
    undisturbed: Path, expected: Expected, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(undisturbed, tmp_path / "data"))
    [images] = [artifact for artifact in published(root) if artifact.stage == "make_demo_images"]
    forbidden = sorted(images.path.rglob("*.png"))[3]
    forbidden.chmod(0)
    said = chain(root, shortage=without_privileges)
    assert said.code in (1, 2), said.err
    assert str(forbidden) in said.err
    assert "Permission denied" in said.err
    assert "Traceback" not in said.err
    forbidden.chmod(0o644)
    again = chain(root, shortage=without_privileges)
    assert again.code == 0, again.err
    assert "Every stage was cached" in again.out
    assert wrong_results(root, expected, whole=True) == []


def test_an_allocation_that_fails_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as too_large:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(too_large.value)
    with pytest.raises(RuntimeError) as misfit:
        torch.empty(2) + torch.empty(3)
    assert not is_out_of_memory(misfit.value)


SHORTAGES = (
    RuntimeError("CUDA error: out of memory"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("NCCL Error 1: unhandled cuda error, Cuda failure 2 'out of memory'"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("StandardGpuResources: alloc fail type FlatData dev 0 (cudaMalloc error out of memory [2])"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),  # of a fork or a memory map
)


@pytest.mark.parametrize("error", SHORTAGES, ids=str)
def test_a_shortage_in_whatever_words_is_a_sentence(error: Exception) -> None:
    of_gpu = "cu" in str(error).lower()
    with pytest.raises(PipelineError) as explained, shortage_explained("a thing", "take a smaller one"):
        raise error
    whose = "the GPU's" if of_gpu else "this machine's"
    assert str(explained.value) == f"{whose} memory does not suffice for a thing; take a smaller one"


def test_a_place_that_knows_better_what_memory_was_wanted_for_says_it() -> None:
    with (
        pytest.raises(PipelineError, match="suffice for a step; a"),
        shortage_explained("a stage", "b"),
        shortage_explained("a step", "a"),
    ):
        torch.empty(1 << 60, dtype=torch.uint8)


def no_more_than(images: int) -> None:
    """Imitate a device whose memory holds the convolutions of so many images: a limit of the system's is no test of
    this, as libraries then fail in ways of their own before torch does."""
    convolve = F.conv2d

    def limited(pixels: Tensor, *rest: Any, **named: Any) -> Tensor:
        if len(pixels) > images:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(pixels)} images")
        return convolve(pixels, *rest, **named)

    F.conv2d = limited


def test_batches_that_do_not_fit_are_halved_with_a_note_wherever_nothing_is_trained(
    tmp_path: Path, expected: Expected
) -> None:
    root = tmp_path / "here" / "data"
    said = chain(root, "settings.batch_size=90", shortage=partial(no_more_than, 64))
    assert said.code == 0, said.err
    note = "90 images at once do not fit in memory, going on with 45 (settings.batch_size=45 starts with that)"
    assert said.err.count(note) >= 4, "features, tokens of two tokenizers, CLIP zero-shot"
    assert "45 images at once" not in said.err
    assert wrong_results(root, expected, whole=True) == []


def pretraining(root: Path, *words: str, shortage: Callable[[], None] | None = None) -> Said:
    words = (f"settings.data_root={root}", *MACHINE, *SMALL_BUILD, *SMALL_TRAINING, "training.batch_size=40", *words)
    return mapet(root.parent.parent / "said", "pretrain", "demo", *words, shortage=shortage)


def without_pretrainings(root: Path) -> Path:
    """Keep what a pre-training is made of."""
    shutil.rmtree(root / "pretrain")
    return root


def last_of_curve(root: Path) -> Mapping[str, float]:
    [trained] = list_artifacts(Layout(root), "pretrain")
    return read_history(trained.path)[-1]


def no_centroids() -> None:
    """Give memory that holds everything but the sums of the clusters."""

    def limited(*_: Any) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    lloyd._add_rows = limited


def test_a_kmeans_that_does_not_fit_is_an_error_that_says_what_makes_it_fit(undisturbed: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(undisturbed, tmp_path / "here" / "data"))
    said = build(root, "codebook.seed=3", shortage=no_centroids)
    assert said.code == 2, said.err
    assert "Traceback" not in said.err
    assert said.last.startswith("mapet: error: this machine's memory does not suffice for a k-means of "), said.err
    assert said.last.endswith("set codebook.vocabulary to less, or settings.device=cpu")


def test_a_step_that_does_not_fit_is_an_error_that_says_what_makes_it_fit(undisturbed: Path, tmp_path: Path) -> None:
    roots = (shutil.copytree(undisturbed, tmp_path / place / "data") for place in ("here", "there"))
    root, enough = map(without_pretrainings, roots)
    few = partial(no_more_than, 25)
    said = pretraining(root, shortage=few)
    assert said.code == 2, said.err
    assert said.last == (
        "mapet: error: the GPU's memory does not suffice for 40 images at once; set settings.micro_batch_size to "
        "less (the step keeps its batch size), or settings.gradient_checkpointing=true, or settings.head_rows=1024 "
        "(in pre-training)"
    )
    assert not list_artifacts(Layout(root), "pretrain")
    again = pretraining(root, "settings.micro_batch_size=20", shortage=few)
    assert again.code == 0, again.err
    assert pretraining(enough).code == 0
    assert last_of_curve(root) == pytest.approx(last_of_curve(enough), rel=1e-3)
