"""Step `assignment`: the nearest of 8192 centroids to heavy-tailed features, by float16 products and by float64."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu_check.checks import Attempt, Check, Setup, passed_if
from benchmarks.gpu_check.clock import peak_memory, seconds, share_of_peak


def attempts(setup: Setup) -> Iterator[Attempt]:
    yield "assignment", lambda: _assignment(setup)


def _assignment(setup: Setup) -> Iterator[Check]:
    from models.tokenizers.kclip import NearestCentroid

    features, centroids = heavy_tailed(
        rows=setup.size(64 * 196, 200), vocabulary=setup.size(8192, 32), width=setup.size(1024, 16), device=setup.device
    )
    nearest = NearestCentroid(centroids, method="split")
    expected, found = brute_force(features.cpu(), centroids.cpu()).to(setup.device), nearest(features)
    wrong = int((found != expected).sum())
    yield passed_if(wrong == 0, "against float64", value=wrong, unit=f"of {len(found):,} rows differ")
    plain = int((brute_force(features, centroids.half().float()) != expected).sum())
    yield Check("float16 centroids would", "measured", plain, f"of {len(found):,} rows differ")
    for size in (1, 7, 196, 1000):
        some = features[: 20 * size]
        parts = torch.cat([nearest(part) for part in some.split(size)])
        yield passed_if(torch.equal(parts, found[: len(some)]), f"in batches of {size}")
    yield from _speed(nearest, features, setup)
    direct = NearestCentroid(centroids, method="direct")
    took = seconds(lambda: direct(features), setup.device, count=setup.size(3, 1))
    yield Check("in float64", "measured", 1e3 * took, "ms")


def _speed(nearest: torch.nn.Module, features: Tensor, setup: Setup) -> Iterator[Check]:
    took = seconds(lambda: nearest(features), setup.device, count=setup.size(10, 1))
    flops = 2 * 2 * len(features) * nearest.centroids.numel() / took
    note = share_of_peak(flops, setup.device)
    yield Check("two products", "measured", 1e3 * took, f"ms for {len(features):,} rows", note)
    memory = peak_memory(lambda: nearest(features), setup.device)
    if memory:
        yield Check("two products, memory", "measured", memory / 2**20, "MiB")


def heavy_tailed(*, rows: int, vocabulary: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Draw features, float16 [rows, width], and centroids, float32 [vocabulary, width], that are like CLIP's: most
    numbers small, some channels hundreds of times as large, rows of very different length."""
    generator = torch.Generator().manual_seed(0)

    def tailed(count: int) -> Tensor:
        """Draw sizes of normal numbers over those of others: Cauchy's tail, cut."""
        above, below = torch.randn(2, count, generator=generator)
        return (above / below).abs().clamp(0.05, 200)

    channels = tailed(width)
    centroids = torch.randn(vocabulary, width, generator=generator) * channels
    picks = torch.randint(0, vocabulary, (rows,), generator=generator)
    noise = 0.1 * tailed(rows).clamp(max=20)[:, None] * torch.randn(rows, width, generator=generator) * channels
    return (centroids[picks] + noise).half().to(device), centroids.to(device)


def brute_force(features: Tensor, centroids: Tensor) -> Tensor:
    """Find the nearest centroid of each row in float64, block by block."""
    table = centroids.double()
    half_norms = table.square().sum(1) / 2
    return torch.cat([(part.double() @ table.T - half_norms).argmax(1) for part in features.split(2048)])


@dataclass(frozen=True)
class Rows:
    """float16 [n, D] on the CPU, as `models.kmeans.rows.FeatureRows`."""

    values: Tensor

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def __len__(self) -> int:
        return len(self.values)

    def read(self, start: int, stop: int) -> object:
        return self.values[start:stop].numpy()
