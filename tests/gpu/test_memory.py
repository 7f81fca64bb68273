"""A batch that does not fit in the memory of a card."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.engine.batches import Batch
from pipeline.engine.errors import PipelineError
from pipeline.engine.memory import Halving, is_out_of_memory

MEBIBYTE = 2**20
AN_IMAGE = 16 * MEBIBYTE


@pytest.fixture(autouse=True)
def _a_card(device: str) -> None:
    if not device.startswith("cuda"):
        pytest.skip("a CPU's memory cannot be limited so")


@contextmanager
def room_for(images: float) -> Iterator[None]:
    """Leave room for so many of `mean`'s, whatever the card has."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + images * AN_IMAGE) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def mean(batch: Batch) -> Tensor:
    """Compute the mean of each image, by way of as much memory as a network would take."""
    (pixels,) = batch.inputs
    return pixels.expand(len(pixels), AN_IMAGE // 4).contiguous().mean(1)


def batch_of(images: int, device: str) -> Batch:
    return Batch(np.arange(images), (torch.arange(float(images), device=device)[:, None],))


def test_a_batch_that_does_not_fit_is_computed_in_pieces_with_the_same_result(device: str) -> None:
    batch = batch_of(64, device)
    expected = mean(batch)
    with room_for(20):
        pieces = list(Halving[Batch, Tensor](mean)(batch))
    assert [len(piece) for piece, _ in pieces] == [16] * 4
    assert torch.equal(torch.cat([found for _, found in pieces]), expected)


def test_what_did_not_fit_once_is_not_tried_again(device: str) -> None:
    tried: list[int] = []

    def counted(batch: Batch) -> Tensor:
        tried.append(len(batch))
        return mean(batch)

    compute = Halving[Batch, Tensor](counted)
    with room_for(20):
        for _ in range(2):
            list(compute(batch_of(32, device)))
    assert tried == [32, 16, 16, 16, 16]


def test_not_even_one_image_is_a_sentence(device: str) -> None:
    with room_for(0.5), pytest.raises(PipelineError, match="does not suffice for a single image"):
        list(Halving[Batch, Tensor](mean)(batch_of(2, device)))


def test_what_torch_says_when_memory_is_short_is_recognised(device: str) -> None:
    with room_for(1), pytest.raises(RuntimeError) as raised:
        mean(batch_of(4, device))
    assert is_out_of_memory(raised.value)
