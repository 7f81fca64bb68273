"""Features whose nearest centroids are nearly tied."""

import torch
from torch import Tensor


def brute_force(features: Tensor, centroids: Tensor) -> Tensor:
    x, c = features.double(), centroids.double()
    return (x.square().sum(1, keepdim=True) - 2 * x @ c.T + c.square().sum(1)).argmin(1)


def crowded(*, rows: int = 4000, vocabulary: int = 512, width: int = 256) -> tuple[Tensor, Tensor]:
    """Return features as after a ReLU with hot channels, and centroids in close pairs: many rows almost tie."""
    generator = torch.Generator().manual_seed(0)
    hot = torch.rand(width, generator=generator).pow(4) * 8
    half = torch.randn(vocabulary // 2, width, generator=generator).relu() * hot
    centroids = torch.cat([half, half * (1 + 2e-3 * torch.randn(half.shape, generator=generator))])
    picks = torch.randint(0, vocabulary, (rows,), generator=generator)
    noise = 0.3 * torch.randn(rows, width, generator=generator) * hot
    return (centroids[picks] + noise).relu().half(), centroids
