"""The nearest centroid by two float16 products, against float64."""

import pytest
import torch
from torch import Tensor

from models.tokenizers.kclip import NearestCentroid
from tests.models.crowds import brute_force, crowded


def heavy_tailed(*, rows: int = 4000, vocabulary: int = 1024, width: int = 512) -> tuple[Tensor, Tensor]:
    """Draw rows as CLIP's: most numbers small, some channels hundreds of times as large, rows of very different
    length."""
    generator = torch.Generator().manual_seed(0)
    tail = torch.distributions.StudentT(torch.tensor(1.5))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        channels, lengths = (tail.sample((count,)).abs().clamp(0.05, 200) for count in (width, rows))
    centroids = torch.randn(vocabulary, width, generator=generator) * channels
    picks = torch.randint(0, vocabulary, (rows,), generator=generator)
    noise = torch.randn(rows, width, generator=generator) * channels
    return (centroids[picks] + 0.1 * lengths.clamp(max=20)[:, None] * noise).half(), centroids


DATA = pytest.mark.parametrize("draw", [heavy_tailed, crowded])


@DATA
@pytest.mark.parametrize("method", ["split", "direct"])
def test_no_token_differs_from_brute_force_in_float64(draw: object, method: str, device: str) -> None:
    features, centroids = draw()  # type: ignore[operator]
    nearest = NearestCentroid(centroids.to(device), method=method)  # type: ignore[arg-type]
    assert torch.equal(nearest(features.to(device)).cpu(), brute_force(features, centroids))


@DATA
def test_a_token_does_not_depend_on_the_rows_beside_it(draw: object, device: str) -> None:
    features, centroids = (tensor.to(device) for tensor in draw())  # type: ignore[operator]
    nearest = NearestCentroid(centroids, method="split")
    whole = nearest(features)
    for size in (1, 7, 196, 1000):
        some = features[: 50 * size]
        assert torch.equal(torch.cat([nearest(part) for part in some.split(size)]), whole[: 50 * size])


def test_distances_are_those_of_the_cpu(device: str) -> None:
    features, centroids = heavy_tailed(rows=500)
    expected = NearestCentroid(centroids).assign(features)
    found = NearestCentroid(centroids.to(device)).assign(features.to(device))
    torch.testing.assert_close(found.squared_distances.cpu(), expected.squared_distances, rtol=1e-4, atol=0)


def test_a_feature_that_is_not_finite_gets_no_token(device: str) -> None:
    features, centroids = (tensor.to(device) for tensor in heavy_tailed(rows=4))
    features[1, 3], features[2, 0] = torch.nan, torch.inf
    assert (NearestCentroid(centroids, method="split")(features) < 0).tolist() == [False, True, True, False]
