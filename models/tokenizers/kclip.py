"""k-CLIP tokens: the nearest centroid of a patch's CLIP feature (MaPeT, section 3), or of any other patch feature.

    token(x) = argmin_k ||x - c_k||^2 = argmax_k  x.c_k - ||c_k||^2 / 2

The features x are float16, as stores and k-means see them, and rounding the scores turns tokens: with TF32 or plain
float16 centroids 0.03 % of easy and 3 % of hard data (measured against float64). Float16 tensor cores still give
float32's precision, on centroids cut in two, since a product of two float16 is exact in float32:

    c = high + 2^-11 low,   high = fp16(c),   low = fp16(2^11 (c - high)),   x.c = x.high + 2^-11 x.low

The factor keeps `low` as large as `high`, away from the subnormals of float16. What even float32 cannot tell apart,
rows whose two best scores differ by less than its error, is scored again in float64. So a token depends on feature and
codebook alone: not on the device, the batch, nor the order in which a kernel adds.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float16, Float32, Int, UInt8
from torch import Tensor, nn

from models.encoders.base import PatchEncoder
from models.errors import ModelError
from models.tokenizers.base import Tokenizer

LOW_SCALE = 2.0**11  # float16 keeps 11 bits: what is left of c after rounding is 2^11 smaller than c
BLOCK_NUMBERS = 2**25  # scores, or features, held at once in float32: 128 MiB
NOT_FINITE = -1
# Scores closer than this, in units of |x| |c| + |c|^2 / 2, are scored again: four times the largest error seen on a CPU
# (2^-22 from 256 to 4096 channels), with room for tensor cores, whose float32 sums cut off instead of rounding.
DOUBT = {"direct": 2.0**-20, "split": 2.0**-17}


@dataclass(frozen=True)
class Assignment:
    """`ids`, int64, and squared Euclidean distances to those centroids, float32; shaped like the features but for D."""

    ids: Int[Tensor, " *batch"]
    squared_distances: Float32[Tensor, " *batch"]


def split_half(values: Float32[Tensor, "K D"]) -> tuple[Float16[Tensor, "K D"], Float16[Tensor, "K D"]]:
    """Split `values` into (high, low) with values = high + low / 2048, to 22 bits."""
    high = values.half()
    return high, ((values - high.float()) * LOW_SCALE).half()


class NearestCentroid(nn.Module):
    """The nearest centroid, exactly; of equally near ones, the lowest id.

    Args:
        centroids: [K, D]; kept as float32.
        method: a matter of speed only. "split", two float16 products, is the default on a GPU; "direct", one float32
            product, on a CPU and for centroids beyond float16. Direct on a GPU is float64, which TF32 cannot touch.

    Raises:
        ModelError: not a matrix, empty, or not finite.
    """

    centroids: Tensor
    half_norms: Tensor
    high: Tensor
    low: Tensor

    def __init__(self, centroids: Float[Tensor, "K D"], *, method: Literal["split", "direct"] | None = None):
        super().__init__()
        if centroids.ndim != 2 or not centroids.numel() or not bool(torch.isfinite(centroids).all()):
            raise ModelError(f"codebook: came {list(centroids.shape)}, expected finite centroids [K, D]")
        centroids = centroids.detach().float()
        fits = bool(centroids.abs().max() <= torch.finfo(torch.float16).max)
        self.method = (method or ("split" if centroids.is_cuda else "direct")) if fits else "direct"
        # No buffer is persistent: loading other centroids would leave those derived from them behind.
        self.register_buffer("centroids", centroids, persistent=False)
        self.register_buffer("half_norms", centroids.double().square().sum(1) / 2, persistent=False)
        if self.method == "split":
            for name, part in zip(("high", "low"), split_half(centroids), strict=True):
                self.register_buffer(name, part, persistent=False)

    def forward(self, features: Float16[Tensor, "*batch D"]) -> Int[Tensor, " *batch"]:
        """Return ids in [0, K), int64; -1 where a feature is not finite.

        Raises:
            ModelError: features of another width.
        """
        ids = [self._nearest(rows) for rows in self._blocks(features)]
        return _join(ids, features, torch.int64)

    def assign(self, features: Float16[Tensor, "*batch D"]) -> Assignment:
        """Return ids as from `forward`, and distances by the differences themselves: near ones exact, none negative."""
        ids, distances = [], []
        for rows in self._blocks(features):
            ids.append(self._nearest(rows))
            distances.append((rows.float() - self.centroids[ids[-1].clamp_min(0)]).square().sum(1))
        return Assignment(_join(ids, features, torch.int64), _join(distances, features, torch.float32))

    def _blocks(self, features: Float16[Tensor, "*batch D"]) -> Iterator[Float16[Tensor, "M D"]]:
        vocabulary, width = self.centroids.shape
        if features.shape[-1] != width:
            raise ModelError(f"codebook: its centroids have {width} channels, the features {features.shape[-1]}")
        rows = features.detach().reshape(-1, width).to(torch.float16)
        yield from rows.split(max(1, BLOCK_NUMBERS // max(vocabulary, width))) if len(rows) else ()

    @torch.no_grad()
    def _nearest(self, rows: Float16[Tensor, "M D"]) -> Int[Tensor, " M"]:
        with torch.autocast(rows.device.type, enabled=False):
            scores = self._split_scores(rows) if self.method == "split" else self._direct_scores(rows)
            ids = scores.argmax(1)  # names the first of equal scores, unlike max on a GPU
            doubtful = self._doubtful(rows, scores, ids)
            if len(doubtful):
                ids[doubtful] = self._scores(rows[doubtful], torch.float64).argmax(1)
        return ids.masked_fill_(~torch.isfinite(rows).all(1), NOT_FINITE)

    def _doubtful(
        self, rows: Float16[Tensor, "M D"], scores: Float[Tensor, "M K"], ids: Int[Tensor, " M"]
    ) -> Int[Tensor, " few"]:
        """Return the rows in which a second score is as near to the best as rounding could have moved them."""
        largest = self.half_norms.max().float()
        error = DOUBT[self.method] * (rows.float().norm(dim=1) * (2 * largest).sqrt() + largest)
        threshold = scores.gather(1, ids[:, None]) - error[:, None]
        return ((scores >= threshold).sum(1) > 1).nonzero().squeeze(1)

    def _direct_scores(self, rows: Float16[Tensor, "M D"]) -> Float[Tensor, "M K"]:
        return self._scores(rows, torch.float64 if rows.is_cuda else torch.float32)

    def _scores(self, rows: Float16[Tensor, "M D"], dtype: torch.dtype) -> Float[Tensor, "M K"]:
        return torch.addmm(self.half_norms.to(dtype), rows.to(dtype), self.centroids.to(dtype).T, beta=-1)

    def _split_scores(self, rows: Float16[Tensor, "M D"]) -> Float32[Tensor, "M K"]:
        scores = _half_product(rows, self.high)
        return scores.add_(_half_product(rows, self.low), alpha=1 / LOW_SCALE).sub_(self.half_norms)


def _half_product(rows: Float16[Tensor, "M D"], columns: Float16[Tensor, "K D"]) -> Float32[Tensor, "M K"]:
    """Multiply float16 into float32: by tensor cores on a GPU; a CPU has no such call and multiplies in float32."""
    if rows.is_cuda:
        return torch.mm(rows, columns.T, out_dtype=torch.float32)
    return rows.float() @ columns.float().T


def _join(blocks: list[Tensor], features: Tensor, dtype: torch.dtype) -> Tensor:
    joined = torch.cat(blocks) if blocks else torch.empty(0, dtype=dtype, device=features.device)
    return joined.view(features.shape[:-1])


class KClipTokenizer(Tokenizer):
    """Patch encoder and codebook as one: features never leave the device.

    A patch whose feature is not finite gets -1 instead of a token.

    Args:
        name: of what these tokens are, where the encoder is no CLIP, or one of random weights.

    Raises:
        ModelError: the centroids are not as wide as the encoder's features, or not finite.
    """

    def __init__(self, encoder: PatchEncoder, centroids: Float[Tensor, "K D"], *, name: str = "kclip"):
        super().__init__()
        if centroids.ndim != 2 or centroids.shape[1] != encoder.width:
            raise ModelError(
                f"codebook {list(centroids.shape)} does not belong to {encoder.name}, whose features have "
                f"{encoder.width} channels; use the encoder the codebook was fitted on, or fit another"
            )
        self.name = name
        self.encoder = encoder
        self.codebook = NearestCentroid(centroids.to(encoder.device))
        self.vocabulary = len(centroids)
        self.grid = encoder.grid
        self.precision = encoder.precision
        self.preprocessing = encoder.preprocessing
        self.digest = self._digest()

    def _digest(self) -> str:
        digest = hashlib.sha256(f"{self.encoder.digest} {self.encoder.precision} {self.preprocessing}\n".encode())
        digest.update(f"{list(self.codebook.centroids.shape)}\n".encode())
        digest.update(self.codebook.centroids.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def forward(self, images: UInt8[Tensor, "B 3 side side"]) -> Int[Tensor, "B N"]:
        """Tokenize as the contract says; the encoder's errors are passed on."""
        return self.codebook(self.encoder(images))
