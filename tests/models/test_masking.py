"""Draws that every device repeats, and who sees whom in the two-stream network, against the rules one by one."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.masking import corruption_seeds, permutations, random_bits, two_stream_attention_mask, uniforms
from pipeline.encoding.sampling import patch_hashes

SEEDS = corruption_seeds(0, 0, torch.arange(1000))


def test_random_bits_are_the_hashes_that_the_feature_sample_uses() -> None:
    ids = np.array([0, 1, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)
    ours = random_bits(torch.from_numpy(ids.view(np.int64)), 7, stream=3)
    assert np.array_equal(ours.numpy(), (patch_hashes(ids, patches=7, seed=3) >> np.uint64(1)).astype(np.int64))


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    numbers = uniforms(SEEDS, 100, stream=0)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    shares = torch.histc(numbers.float(), bins=20, min=0, max=1) / numbers.numel()
    assert (shares - 0.05).abs().max() < 0.003  # 4 deviations of 10^5 draws


def test_streams_of_one_seed_are_uncorrelated() -> None:
    a, b = uniforms(SEEDS, 100, stream=0).flatten(), uniforms(SEEDS, 100, stream=1).flatten()
    assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 0.015


def test_seeds_differ_by_run_epoch_and_image() -> None:
    rows = torch.arange(200)
    seeds = torch.stack([corruption_seeds(run, epoch, rows) for run in range(5) for epoch in range(5)])
    assert seeds.unique().numel() == 25 * 200


def test_the_seed_of_an_image_does_not_depend_on_its_batch() -> None:
    rows = torch.tensor([5, 900, 12])
    assert torch.equal(corruption_seeds(1, 2, rows)[1:2], corruption_seeds(1, 2, rows[1:2]))


def test_seeds_and_permutations_never_change_between_versions() -> None:
    """A run resumed with a later version must draw the same."""
    seeds = corruption_seeds(42, 3, torch.tensor([0, 1]))
    assert seeds.tolist() == [-7528224887329527195, -5679747150539663049]
    assert permutations(seeds, 8).tolist() == [[7, 4, 3, 1, 0, 2, 5, 6], [0, 2, 5, 7, 1, 6, 3, 4]]


def test_every_patch_is_equally_often_at_every_position() -> None:
    order = permutations(corruption_seeds(0, 0, torch.arange(20000)), 8)
    assert torch.equal(order.sort(dim=1).values, torch.arange(8).expand(20000, 8))
    counts = torch.stack([order[:, position].bincount(minlength=8) for position in range(8)])
    assert (counts / 20000 - 1 / 8).abs().max() < 0.01


def rule(patches: int, context: int) -> tuple[Tensor, Tensor]:
    """Return the content and query rows by the four rules of the method, written out; keys [class, patches in order,
    masks]."""
    first, predicted = 1 + context, patches - context
    content = torch.zeros(1 + patches + predicted, 1 + patches + predicted, dtype=torch.bool)
    query = torch.zeros(predicted, 1 + patches + predicted, dtype=torch.bool)
    for row in [*range(first), *range(1 + patches, 1 + patches + predicted)]:  # class token, context patches, masks
        content[row, :first] = True
        content[row, 1 + patches :] = True
    for t in range(predicted):
        for rows, row, own_content in ((content, first + t, True), (query, t, False)):
            rows[row, :first] = True
            for j in range(predicted):
                before = j < t or (j == t and own_content)
                rows[row, first + j] = before
                rows[row, 1 + patches + j] = not before
    return content, query


@pytest.mark.parametrize(("patches", "context"), [(5, 2), (5, 0), (5, 4), (16, 3), (196, 49), (196, 59)])
def test_the_attention_mask_follows_the_rules_of_the_method(patches: int, context: int) -> None:
    content, query = rule(patches, context)
    assert torch.equal(two_stream_attention_mask(patches, context, masks=True), torch.cat([content, query]))


def test_without_masks_it_is_the_same_matrix_without_their_rows_and_columns() -> None:
    content, query = rule(16, 5)
    expected = torch.cat([content[:17, :17], query[:, :17]])
    assert torch.equal(two_stream_attention_mask(16, 5, masks=False), expected)


def test_every_row_sees_every_position_exactly_once() -> None:
    patches, context = 20, 6
    attention_mask = two_stream_attention_mask(patches, context, masks=True).int()
    positions = attention_mask[:, : 1 + patches].clone()
    positions[:, 1 + context :] += attention_mask[:, 1 + patches :]
    assert (positions == 1).all()
