"""The codes of a VQ-KD: the averages against a plain loop, the start, and dead codes that come back to life."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import ModelError
from models.kmeans.statistics import codebook_statistics
from models.vqkd.codebook import EmaCodebook, nearest_codes
from models.vqkd.options import VQKDCodebookOptions


def units(rows: int, width: int, *, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def codebook(vocabulary: int = 6, width: int = 4, **options: float) -> EmaCodebook:
    return EmaCodebook(vocabulary, width, VQKDCodebookOptions.model_validate(options), seed=3)


def alone(statistics: Tensor) -> Tensor:
    return statistics


def step(codes: EmaCodebook, z: Tensor) -> None:
    codes.count(z, codes.nearest(z))
    codes.finish_step(alone)


# -------------------------------------------------------------------------------------------------------- nearest


def test_the_nearest_code_has_the_largest_cosine_and_of_equal_ones_the_lowest_id() -> None:
    z, codes = units(50, 8), units(20, 8, seed=1)
    expected = (z.double() @ codes.double().T).argmax(1)
    assert torch.equal(nearest_codes(z, codes), expected)
    assert torch.equal(nearest_codes(z, torch.cat([codes, codes.flip(0)])), expected)
    assert torch.equal(nearest_codes(z, codes, at_once=7 * 20), expected)


def test_a_vector_that_is_not_finite_has_no_code() -> None:
    z = units(3, 4)
    z[1, 2] = torch.nan
    assert (nearest_codes(z, units(5, 4)) == -1).tolist() == [False, True, False]


# ----------------------------------------------------------------------------------------------------- one step


def plain_step(codes: Tensor, usage: Tensor, z: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Return the same in float64, code by code and vector by vector."""
    codes, usage, z = codes.double(), usage.double(), z.double()
    nearest = [int((codes @ vector).argmax()) for vector in z]
    for k in range(len(codes)):
        own = [vector for vector, code in zip(z, nearest, strict=True) if code == k]
        if own:
            mean = sum(own) / len(own)
            moved = decay * codes[k] + (1 - decay) * mean / mean.norm()
            codes[k] = moved / moved.norm()
        usage[k] = decay * usage[k] + (1 - decay) * len(own) / len(z)
    return codes, usage


def test_a_step_is_the_moving_average_of_a_plain_loop() -> None:
    codes, z = codebook(12, 4, decay=0.8, revive_below=0.0), units(20, 4)
    expected = codes.codes, codes.usage
    for _ in range(3):
        expected = plain_step(*expected, z, decay=0.8)
        step(codes, z)
        torch.testing.assert_close((codes.codes.double(), codes.usage.double()), expected, atol=1e-6, rtol=0)
    assert codes.usage.sum() == pytest.approx(1, abs=1e-6)


def test_a_code_that_nothing_falls_on_stays_where_it_is() -> None:
    codes = codebook(revive_below=0.0)
    before = codes.codes.clone()
    step(codes, codes.codes[:2].clone())
    assert torch.equal(codes.codes[2:], before[2:])


def test_vectors_that_cancel_leave_their_code_where_it_is() -> None:
    codes = codebook(2, 2, decay=0.0, revive_below=0.0)
    before = codes.codes.clone()
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    codes.count(z, torch.zeros(2, dtype=torch.int64))
    codes.finish_step(alone)
    assert torch.equal(codes.codes, before)


def test_nothing_changes_before_the_step_is_over() -> None:
    codes, z = codebook(), units(30, 4)
    before = {name: tensor.clone() for name, tensor in codes.state_dict().items()}
    codes.count(z, codes.nearest(z))
    assert all(torch.equal(tensor, before[name]) for name, tensor in codes.state_dict().items())
    codes.finish_step(alone)
    assert not torch.equal(codes.codes, before["codes"])


def test_pieces_of_a_step_count_as_the_whole() -> None:
    whole, pieces, z = codebook(), codebook(), units(90, 4)
    for _ in range(5):
        step(whole, z)
        for piece in z.split([1, 30, 59]):
            pieces.count(piece, pieces.nearest(piece))
        pieces.finish_step(alone)
        torch.testing.assert_close(pieces.state_dict(), whole.state_dict(), atol=1e-6, rtol=0)


def test_processes_that_share_a_step_have_the_codes_of_one() -> None:
    whole, first, second, z = codebook(), codebook(), codebook(), units(90, 4)
    step(whole, z)
    handed: list[Tensor] = []
    for codes, part in ((first, z[:20]), (second, z[20:])):
        codes.count(part, codes.nearest(part))
        handed.append(codes._of_step().clone())
    for codes in (first, second):
        codes.finish_step(lambda statistics: statistics.copy_(handed[0] + handed[1]))
        torch.testing.assert_close(codes.state_dict(), whole.state_dict(), atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------------------- revival


def test_dead_codes_in_order_of_id_share_with_the_most_used_in_order_of_usage() -> None:
    codes = codebook(6, 4, revive_below=0.5)
    codes.usage.copy_(torch.tensor([0.3, 0.01, 0.15, 0.4, 0.13, 0.01]))
    before = codes.codes.clone()
    codes._revive()
    assert codes.usage.tolist() == pytest.approx([0.15, 0.2, 0.15, 0.2, 0.13, 0.15])
    for dead, shared in ((1, 3), (5, 0)):
        for half in (dead, shared):
            assert F.cosine_similarity(codes.codes[half], before[shared], dim=0) > 1 - 1e-5
        middle = F.normalize(codes.codes[dead] + codes.codes[shared], dim=0)
        torch.testing.assert_close(middle, before[shared], atol=1e-6, rtol=0)
        assert not torch.equal(codes.codes[dead], codes.codes[shared])
    assert torch.equal(codes.codes[[2, 4]], before[[2, 4]])
    torch.testing.assert_close(codes.codes.norm(dim=1), torch.ones(6), atol=1e-6, rtol=0)


def test_only_what_is_used_more_than_an_even_share_is_shared() -> None:
    codes = codebook(4, 4, revive_below=0.5)
    codes.usage.copy_(torch.tensor([0.8, 0.2, 0.0, 0.0]))
    before = codes.codes.clone()
    codes._revive()
    assert codes.usage.tolist() == pytest.approx([0.4, 0.2, 0.4, 0.0])
    assert torch.equal(codes.codes[[1, 3]], before[[1, 3]])


def clustered(rows: int, *, clusters: int = 64, width: int = 16, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, clusters, (rows,), generator=generator)
    return F.normalize(units(clusters, width)[ids] + 0.1 * torch.randn(rows, width, generator=generator), dim=1)


@pytest.mark.parametrize(("revive_below", "least", "most"), [(0.0, 0.0, 0.6), (0.1, 0.95, 1.0)])
def test_a_bad_start_leaves_half_of_the_codes_dead_unless_they_are_revived(
    revive_below: float, least: float, most: float
) -> None:
    codes = codebook(128, 16, revive_below=revive_below, decay=0.95)
    nowhere = units(1, 16, seed=9)  # as after a collapse: all codes around one point
    codes.codes.copy_(F.normalize(nowhere + 0.02 * codes.codes, dim=1))
    for number in range(200):
        step(codes, clustered(1024, seed=number))
    ids = codes.nearest(clustered(20_000, seed=1000))
    assert least <= len(ids.unique()) / 128 <= most


# ---------------------------------------------------------------------------------------------- start and usage


def test_the_start_is_k_means_by_cosine_from_vectors_drawn_by_the_seed() -> None:
    codes, z = codebook(10, 6, revive_below=0.0), clustered(500, width=6, seed=0)
    expected = z[torch.randperm(500, generator=torch.Generator().manual_seed(4))[:10]]
    usage = torch.full((10,), 0.1)
    codes.start(z, iterations=0, seed=4)
    assert torch.equal(codes.codes, expected)
    codes.start(z, iterations=5, seed=4)
    for _ in range(5):
        expected, usage = plain_step(expected, usage, z, decay=0.0)
    torch.testing.assert_close((codes.codes.double(), codes.usage.double()), (expected, usage), atol=1e-5, rtol=0)


def test_the_start_is_drawn_from_its_seed_alone() -> None:
    z, random, made = units(200, 4), torch.random.get_rng_state(), []
    for seed in (0, 0, 1):
        codes = codebook(20, 4)
        codes.start(z, iterations=3, seed=seed)
        made.append(codes.codes)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert torch.equal(torch.random.get_rng_state(), random)


def test_fewer_vectors_than_codes_are_refused() -> None:
    with pytest.raises(ModelError, match=r"^5 patches to start 6 codes from, .*start_images"):
        codebook().start(units(5, 4), iterations=1, seed=0)


def test_usage_is_said_as_k_means_says_it() -> None:
    codes, sizes = codebook(), np.array([50, 30, 0, 15, 5, 0])
    codes.usage.copy_(torch.from_numpy(sizes / 100))
    expected = codebook_statistics(sizes)
    assert float(codes.used_share) == pytest.approx(expected.used_share)
    assert float(codes.perplexity) == pytest.approx(expected.perplexity)
