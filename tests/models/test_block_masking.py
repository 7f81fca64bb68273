"""Block-wise masks against the sequential algorithm, which is written out here as one would for a single image."""

import hashlib
import math

import numpy as np
import pytest
import torch

from models.errors import ModelError
from models.objectives.block_masking import ROUNDS, block_masks, draw_blocks, smallest_block

IMAGES = 4000
SIDE = 14


def sequential_mask(
    random: np.random.Generator, side: int, masked: int, min_block: int, tries: int
) -> tuple[np.ndarray, list[int]]:
    """Return one mask of blocks, not topped up, and how many patches each block added."""
    mask, added = np.zeros((side, side), dtype=bool), []
    failures = 0
    while sum(added) < masked and failures < tries:
        failures += 1
        budget = masked - sum(added)
        area = min_block + random.random() * (budget - min_block)
        aspect = math.exp(random.uniform(math.log(0.3), -math.log(0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= side or width >= side:
            continue
        top, left = random.integers(0, side - height + 1), random.integers(0, side - width + 1)
        block = mask[top : top + height, left : left + width]
        new = int((~block).sum())
        if 0 < new <= budget:
            block[:] = True
            added.append(new)
            failures = 0
    return mask, added


def topped_up(random: np.random.Generator, mask: np.ndarray, masked: int) -> np.ndarray:
    free = np.flatnonzero(~mask)
    mask.flat[random.choice(free, masked - int(mask.sum()), replace=False)] = True
    return mask


def seeds(count: int = IMAGES) -> torch.Tensor:
    return torch.arange(count) * 7919 + 5


def contacts(masks: np.ndarray) -> np.ndarray:
    """Pairs of neighbouring masked patches, per image: how blocky a mask is."""
    below = (masks[:, 1:] & masks[:, :-1]).sum((1, 2))
    beside = (masks[:, :, 1:] & masks[:, :, :-1]).sum((1, 2))
    return below + beside


def assert_same_mean(ours: np.ndarray, reference: np.ndarray, *, errors: float = 4.5) -> None:
    """Require that means of independent rows differ by at most `errors` standard errors, in every column."""
    error = np.sqrt(ours.var(0) / len(ours) + reference.var(0) / len(reference)) + 1e-9
    assert (np.abs(ours.mean(0) - reference.mean(0)) / error).max() < errors


@pytest.mark.parametrize(("masked", "tries"), [(75, 10), (98, ROUNDS)])
def test_masks_follow_the_law_of_the_sequential_algorithm(masked: int, tries: int) -> None:
    random = np.random.default_rng(3)
    # Without a limit of tries the reference never stops: the few images that run out of rounds are within the errors.
    limit = tries if tries < ROUNDS else 10_000
    drawn = [sequential_mask(random, SIDE, masked, 16, limit) for _ in range(IMAGES)]
    reference = np.stack([topped_up(random, mask.copy(), masked) for mask, _ in drawn])
    ours = block_masks(seeds(), (SIDE, SIDE), masked, tries=tries).view(-1, SIDE, SIDE).numpy()

    assert_same_mean(ours.reshape(IMAGES, -1), reference.reshape(IMAGES, -1))  # frequency of every position
    assert_same_mean(contacts(ours)[:, None], contacts(reference)[:, None])
    assert_same_mean(contacts(ours)[:, None] ** 2, contacts(reference)[:, None] ** 2)
    for axis in (1, 2):  # how many rows, columns are touched, and the fullest one
        assert_same_mean(ours.any(axis).sum(1)[:, None], reference.any(axis).sum(1)[:, None])
        assert_same_mean(ours.sum(axis).max(1)[:, None], reference.sum(axis).max(1)[:, None])


def test_blocks_are_as_many_and_as_large_as_those_of_the_sequential_algorithm() -> None:
    random = np.random.default_rng(4)
    sizes = [sequential_mask(random, SIDE, 75, 16, 10)[1] for _ in range(IMAGES)]
    reference = np.array([added + [0] * (ROUNDS - len(added)) for added in sizes])
    ours = draw_blocks(seeds(), (SIDE, SIDE), 75, min_block=16, tries=10).added.numpy()
    ours = np.stack([np.concatenate([row[row > 0], np.zeros(ROUNDS - (row > 0).sum())]) for row in ours])

    assert_same_mean((ours > 0).sum(1)[:, None], (reference > 0).sum(1)[:, None])  # blocks of an image
    assert_same_mean(ours.sum(1)[:, None], reference.sum(1)[:, None])  # patches before the top-up
    assert_same_mean(ours[:, :4], reference[:, :4])  # size of the first, second, third, fourth block
    bins = np.array([1, 4, 8, 12, 16, 24, 32, 48, 64, 76])
    shares = [np.stack([np.histogram(row, bins)[0] for row in rows]) for rows in (ours, reference)]
    assert_same_mean(*shares)


@pytest.mark.parametrize("area", [30, 75])  # allows 10 x 3, of extreme aspect; 14 x 5, too wide
def test_a_single_block_has_the_sides_that_its_area_and_aspect_allow(area: int) -> None:
    random = np.random.default_rng(6)
    drawn = [sequential_mask(random, SIDE, area, area, 10) for _ in range(IMAGES)]
    blocks = draw_blocks(seeds(), (SIDE, SIDE), area, min_block=area, tries=10)

    reference = np.stack([mask for mask, added in drawn if len(added) == 1])
    ours = blocks.masked.view(-1, SIDE, SIDE).numpy()[((blocks.added > 0).sum(1) == 1).numpy()]
    heights, expected = (masks.any(2).sum(1) for masks in (ours, reference))
    widths = ours.any(1).sum(1)

    assert len(ours) > IMAGES / 4
    assert (ours.sum((1, 2)) == heights * widths).all()  # rectangles
    assert max(heights.max(), widths.max()) < SIDE
    assert_same_mean(*(rows[:, None] == np.arange(SIDE) for rows in (heights, expected)))


@pytest.mark.parametrize(
    ("grid", "masked"),
    [((14, 14), 75), ((14, 14), 98), ((4, 4), 6), ((4, 4), 8), ((3, 7), 10), ((1, 5), 2), ((2, 2), 3), ((14, 14), 195)],
)
def test_every_image_has_exactly_as_many_masked_patches_as_wanted(grid: tuple[int, int], masked: int) -> None:
    masks = block_masks(seeds(300), grid, masked)

    assert masks.shape == (300, grid[0] * grid[1])
    assert masks.dtype == torch.bool
    assert (masks.sum(1) == masked).all()
    assert len(masks.unique(dim=0)) > 1


def test_a_mask_depends_on_its_own_seed_only() -> None:
    together = block_masks(seeds(20), (SIDE, SIDE), 75)

    assert torch.equal(block_masks(seeds(20)[[7]], (SIDE, SIDE), 75)[0], together[7])
    assert torch.equal(block_masks(seeds(20).flip(0), (SIDE, SIDE), 75), together.flip(0))


@pytest.mark.parametrize(
    ("grid", "masked", "tries", "digest"),
    [
        ((14, 14), 75, 10, "894b0e6382e3ac9f"),
        ((14, 14), 98, ROUNDS, "0adc2e7fdddda5da"),
        ((3, 7), 10, 2, "c72fcd84c25736b6"),
    ],
)
def test_seeds_keep_the_masks_that_they_have_always_had(
    grid: tuple[int, int], masked: int, tries: int, digest: str
) -> None:
    """Digests are those of one round after the other, each with all of its arithmetic inside."""
    masks = block_masks(seeds(500), grid, masked, tries=tries)
    assert hashlib.sha256(masks.numpy().tobytes()).hexdigest().startswith(digest)


def test_the_global_random_state_is_neither_used_nor_changed() -> None:
    torch.manual_seed(1)
    first = block_masks(seeds(5), (SIDE, SIDE), 75)
    drawn = torch.rand(1)
    torch.manual_seed(1)

    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(block_masks(seeds(5), (SIDE, SIDE), 75), first)


def test_small_grids_get_smaller_blocks_and_the_paper_s_keeps_sixteen() -> None:
    assert [smallest_block(16, masked) for masked in (1, 6, 8, 75, 98)] == [1, 1, 2, 16, 16]


@pytest.mark.parametrize("masked", [0, 16])
def test_masking_nothing_or_everything_is_refused(masked: int) -> None:
    with pytest.raises(ModelError, match=f"{masked} masked patches of 16"):
        block_masks(seeds(1), (4, 4), masked)
