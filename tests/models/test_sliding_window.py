"""Windows over large images: where they lie, how they are averaged, and images smaller than one."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import ModelError
from models.heads.sliding_window import labels_at_size, sliding_logits, window_starts


@pytest.mark.parametrize(
    ("length", "starts"),
    [
        (300, [0]),
        (512, [0]),
        (513, [0, 1]),
        (853, [0, 341]),
        (854, [0, 341, 342]),
        (1024, [0, 341, 512]),
        (2048, [0, 341, 682, 1023, 1364, 1536]),
    ],
)
def test_windows_of_512_every_341_pixels_end_flush_with_the_border(length: int, starts: list[int]) -> None:
    assert window_starts(length, window=512, stride=341) == starts


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_every_pixel_is_seen_and_no_window_reaches_beyond_the_border(stride: int) -> None:
    for length in range(4, 20):
        starts = window_starts(length, window=4, stride=stride)
        seen = {pixel for start in starts for pixel in range(start, start + 4)}
        assert seen == set(range(length))
        assert starts == sorted(set(starts))


def test_logits_of_overlapping_windows_are_averaged() -> None:
    """Rows 0..2 of 3 fit one window; columns 0..4 of 5 need those at 0 and 2, which share column 2."""
    numbers = iter((10.0, 20.0))

    def numbered(windows: Tensor) -> Tensor:
        return torch.full((len(windows), 1, 3, 3), next(numbers))

    logits = sliding_logits(numbered, torch.zeros(1, 3, 3, 5), window=3, stride=2, classes=1, at_once=1)

    assert logits[0, 0].tolist() == [[10.0, 10.0, 15.0, 20.0, 20.0]] * 3


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("size", [(3, 9), (8, 8), (9, 13), (20, 8), (2, 2)])
def test_a_prediction_that_looks_at_single_pixels_is_what_it_is_without_windows(
    size: tuple[int, int], at_once: int
) -> None:
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))

    logits = sliding_logits(lambda part: part[:, :2] * 3, images, window=8, stride=5, classes=2, at_once=at_once)

    torch.testing.assert_close(logits, images[:, :2] * 3)


def test_an_image_smaller_than_the_window_is_padded_with_zeros_right_and_below() -> None:
    seen = []

    def watching(windows: Tensor) -> Tensor:
        seen.append(windows)
        return windows[:, :1]

    logits = sliding_logits(watching, torch.ones(1, 3, 2, 3), window=4, stride=3, classes=1)

    assert logits.shape == (1, 1, 2, 3)
    assert seen[0][0, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_that_leaves_pixels_out_is_refused(stride: int) -> None:
    with pytest.raises(ModelError, match="choose 1 to 4"):
        sliding_logits(lambda part: part, torch.zeros(1, 3, 9, 9), window=4, stride=stride, classes=3)


@pytest.mark.parametrize("size", [(5, 7), (11, 17), (30, 12)])
def test_labels_at_another_size_are_the_likeliest_classes_of_the_enlarged_logits(size: tuple[int, int]) -> None:
    logits = torch.randn(1, 37, 5, 7, generator=torch.Generator().manual_seed(2))

    expected = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)[0]

    assert torch.equal(labels_at_size(logits, size), expected)
