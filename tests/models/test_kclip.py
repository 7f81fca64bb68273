"""k-CLIP tokens against brute force in float64: no near-tie may turn, and no bad feature may become a token."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.clip.encoder import ClipPatchEncoder, load_clip
from models.clip.options import ClipOptions
from models.errors import ModelError
from models.tokenizers import kclip
from models.tokenizers.kclip import KClipTokenizer, NearestCentroid, split_half
from tests.models.crowds import brute_force, crowded
from tests.tiny_clip import write_tiny_clip

METHODS = pytest.mark.parametrize("method", ["split", "direct"])


@METHODS
def test_no_token_differs_from_brute_force_in_float64(method: str) -> None:
    features, centroids = crowded()
    expected = brute_force(features, centroids)
    assert torch.equal(NearestCentroid(centroids, method=method)(features), expected)
    plain_half = brute_force(features, centroids.half())
    assert (plain_half != expected).sum() > 10  # the data are hard: float16 centroids alone do turn tokens


def test_a_split_keeps_22_bits_even_of_numbers_subnormal_in_float16() -> None:
    values = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-7, 3, 64)
    high, low = split_half(values)
    error = (high.double() + low.double() / kclip.LOW_SCALE - values.double()).abs()
    assert (error <= values.abs().double() * 2**-22 + 2.0**-36).all()


@METHODS
def test_of_equal_centroids_the_lowest_id_wins(method: str) -> None:
    features, centroids = crowded(rows=500, vocabulary=96)
    nearest = NearestCentroid(torch.cat([centroids, centroids.flip(0), centroids]), method=method)
    assert torch.equal(nearest(features), brute_force(features, centroids))


@METHODS
def test_a_feature_that_is_not_finite_gets_no_token(method: str) -> None:
    features, centroids = crowded(rows=6, vocabulary=16)
    features[1, 3], features[3, 0], features[4, 7] = torch.nan, torch.inf, -torch.inf
    ids = NearestCentroid(centroids, method=method)(features)
    assert (ids < 0).tolist() == [False, True, False, True, True, False]
    assert ids.min() == -1


def test_centroids_beyond_float16_are_not_split() -> None:
    features, centroids = crowded(rows=200, vocabulary=32)
    centroids[5] *= 1e5
    nearest = NearestCentroid(centroids, method="split")
    assert nearest.method == "direct"
    assert torch.equal(nearest(features), brute_force(features, centroids))


@METHODS
def test_blocks_bound_the_memory_without_changing_a_token(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, centroids = crowded(rows=300)
    nearest = NearestCentroid(centroids, method=method)
    whole = nearest(features)
    monkeypatch.setattr(kclip, "BLOCK_NUMBERS", 7 * 512)
    assert [len(rows) for rows in nearest._blocks(features)] == [7] * 42 + [6]
    assert torch.equal(nearest(features), whole)


@METHODS
def test_distances_are_exact_where_the_expansion_would_cancel(method: str) -> None:
    _, centroids = crowded(vocabulary=32)
    features = (centroids[:8] + 1e-3).half().view(2, 4, -1)
    assignment = NearestCentroid(centroids, method=method).assign(features)
    assert assignment.ids.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    expected = (features.double() - centroids[:8].double().view(2, 4, -1)).square().sum(-1)
    torch.testing.assert_close(assignment.squared_distances.double(), expected, rtol=1e-5, atol=0)


@METHODS
def test_an_outer_autocast_turns_no_token(method: str) -> None:
    features, centroids = crowded()
    nearest, expected = NearestCentroid(centroids, method=method), brute_force(features, centroids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest(features), expected)


def test_no_features_give_no_tokens() -> None:
    nearest = NearestCentroid(torch.eye(4))
    assert nearest(torch.empty(0, 3, 4, dtype=torch.float16)).shape == (0, 3)
    assert nearest.assign(torch.empty(0, 4, dtype=torch.float16)).squared_distances.shape == (0,)


def test_centroids_that_are_no_codebook_are_refused() -> None:
    for centroids in (torch.zeros(0, 4), torch.tensor([[1.0, torch.nan]])):
        with pytest.raises(ModelError, match=r"expected finite centroids \[K, D\]"):
            NearestCentroid(centroids)
    with pytest.raises(ModelError, match="4 channels, the features 5"):
        NearestCentroid(torch.eye(4))(torch.zeros(1, 5, dtype=torch.float16))


# The tokenizer


@pytest.fixture
def encoder(tmp_path: Path) -> ClipPatchEncoder:
    return load_clip(ClipOptions(model=write_tiny_clip(tmp_path / "clip"), precision="fp32"))


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)


def test_tokens_are_the_nearest_centroids_of_the_encoders_features(encoder: ClipPatchEncoder) -> None:
    features = encoder(images(8))
    tokenizer = KClipTokenizer(encoder, features.flatten(0, 1).float()[:20])
    tokens = tokenizer(images(8))
    assert (tokens.shape, tokens.dtype, tokenizer.vocabulary, tokenizer.grid) == ((8, 4), torch.int64, 20, (2, 2))
    assert torch.equal(tokens.flatten(), brute_force(features.flatten(0, 1), tokenizer.codebook.centroids))
    assert tokens.flatten()[:20].tolist() == list(range(20))
    assert tokenizer.preprocessing == encoder.preprocessing


def test_a_patch_that_overflows_is_minus_one_and_its_neighbours_keep_their_tokens(
    encoder: ClipPatchEncoder,
) -> None:
    tokenizer = KClipTokenizer(encoder, torch.eye(encoder.width))
    before = tokenizer(images(2))
    encoder.trunk.layer4.register_forward_hook(
        lambda _, __, maps: maps.index_put((torch.tensor(1),) * 4, torch.tensor(1e9))
    )
    after = tokenizer(images(2))
    assert after[1, 3] == -1
    assert torch.equal(after.flatten()[:7], before.flatten()[:7])


def test_a_codebook_of_another_clip_is_refused(encoder: ClipPatchEncoder) -> None:
    with pytest.raises(ModelError, match=r"\[3, 64\] does not belong to .* 128 channels"):
        KClipTokenizer(encoder, torch.zeros(3, 64))


def test_the_digest_follows_codebook_and_precision_and_not_the_path(encoder: ClipPatchEncoder, tmp_path: Path) -> None:
    centroids = torch.eye(encoder.width)
    again = load_clip(ClipOptions(model=write_tiny_clip(tmp_path / "again"), precision="fp32"))
    bf16 = load_clip(ClipOptions(model=write_tiny_clip(tmp_path / "again"), precision="bf16"))
    digest = KClipTokenizer(encoder, centroids).digest
    assert KClipTokenizer(again, centroids).digest == digest
    assert len({digest, KClipTokenizer(bf16, centroids).digest, KClipTokenizer(again, centroids * 2).digest}) == 3


def test_tokens_do_not_depend_on_the_batch_size(encoder: ClipPatchEncoder) -> None:
    tokenizer = KClipTokenizer(encoder, encoder(images(6)).flatten(0, 1).float())
    whole = tokenizer(images(6))
    assert torch.equal(torch.cat([tokenizer(part) for part in images(6).split(4)]), whole)
