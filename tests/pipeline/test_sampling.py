import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.encoding.sampling import patch_hashes, plan_sample


def ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


# What SplitMix64 (Steele, Lea and Flood, 2014) gives first, from the states 0 and 1234567.
STREAM = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
OF_1234567 = 6457827717110365317


@pytest.mark.parametrize(("seed", "image"), [(0, STREAM[0]), (1234567, OF_1234567)])
def test_patches_of_the_image_that_equals_the_seeds_key_have_the_published_stream(seed: int, image: int) -> None:
    assert patch_hashes(np.array([image], np.uint64), patches=4, seed=seed).tolist() == [STREAM]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 60), st.floats(0.001, 1.0), st.integers(0, 5))
def test_the_sample_has_exactly_the_rounded_number_of_distinct_patches(
    images: int, patches: int, fraction: float, seed: int
) -> None:
    plan = plan_sample(ids(images), patches=patches, fraction=fraction, seed=seed)
    assert len(plan) == max(1, round(fraction * images * patches))
    flat = plan.positions * patches + plan.patches
    assert (np.diff(flat) > 0).all(), "sorted and distinct"
    assert flat[-1] < images * patches


def test_the_sample_is_the_bottom_k_of_the_hashes() -> None:
    image_ids = ids(50)
    plan = plan_sample(image_ids, patches=20, fraction=0.1, seed=3)
    hashes = patch_hashes(image_ids, patches=20, seed=3).reshape(-1)
    assert set(plan.positions * 20 + plan.patches) == set(np.argsort(hashes)[:100])


def test_the_same_patches_are_chosen_whatever_the_order_of_the_images() -> None:
    image_ids, patches = ids(200), 30
    shuffled = np.random.default_rng(1).permutation(200)
    plan = plan_sample(image_ids, patches=patches, fraction=0.05, seed=0)
    other = plan_sample(image_ids[shuffled], patches=patches, fraction=0.05, seed=0)
    chosen = set(zip(image_ids[plan.positions].tolist(), plan.patches.tolist(), strict=True))
    assert chosen == set(zip(image_ids[shuffled][other.positions].tolist(), other.patches.tolist(), strict=True))


def test_other_seeds_choose_other_patches() -> None:
    first, second = (plan_sample(ids(500), patches=196, fraction=0.02, seed=seed) for seed in (0, 1))
    flat = [set(plan.positions * 196 + plan.patches) for plan in (first, second)]
    assert len(flat[0] & flat[1]) < 0.05 * len(first)


def test_patches_are_chosen_evenly_over_positions_and_images() -> None:
    plan = plan_sample(ids(20_000), patches=196, fraction=0.02, seed=0)
    expected = len(plan) / 196
    chi2 = ((np.bincount(plan.patches, minlength=196) - expected) ** 2 / expected).sum()
    assert 120 < chi2 < 290, "195 degrees of freedom, 5 sigma"
    per_image = np.bincount(plan.positions, minlength=20_000)
    assert per_image.var() == pytest.approx(196 * 0.02 * 0.98, rel=0.1), "binomial"


def test_imagenet_gives_the_papers_number_of_vectors() -> None:
    assert round(0.02 * 1_281_167 * 196) == 5_022_175
    assert len(plan_sample(ids(12_811), patches=196, fraction=0.02, seed=0)) == round(0.02 * 12_811 * 196)


def test_no_images_give_no_sample() -> None:
    assert len(plan_sample(ids(0), patches=196, fraction=0.02, seed=0)) == 0
