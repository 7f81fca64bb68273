"""A codebook of unit vectors that follows what it quantises, by exponential moving averages instead of gradients.

The norm EMA of BEiT v2 (Peng et al. 2022, arXiv:2208.06366, section 2.1; van den Oord et al. 2017, arXiv:1711.00937,
appendix A.1). After every step, for the n_k unit vectors z of its images whose nearest code is c_k:

    c_k <- l2(d c_k + (1 - d) l2(sum z))  where n_k > 0        usage_k <- d usage_k + (1 - d) n_k / sum n

A code that nothing falls on any more never moves again: it is dead, and on small or own data thousands can be. A dead
code takes over half of a much used one, as an empty cluster does in FAISS: both stand beside where that code was, the
next step's vectors divide between them, and the averages draw them apart. This looks at the statistics alone, never at
vectors, so that the codebook is the same however a step is cut into pieces and processes.

Reviving is a choice of ours, which BEiT v2's code does not make: neither in training nor between the iterations of the
k-means that the codes start from, where it leaves an empty cluster as it is. On crops of photographs the error at the
start is 0.2 % higher with it, and the codes are used more evenly; `revive_below=0` is BEiT v2's way.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from models.errors import ModelError
from models.vqkd.options import VQKDCodebookOptions

BLOCK_NUMBERS = 2**25  # scores held at once in float32: 128 MiB
NOT_FINITE = -1
# Length of the step that two halves of a code take from it. The plane between them goes through the code whatever the
# length is; a thousandth, as in FAISS, is far above rounding and takes no vector from a neighbour.
SPLIT = 1e-3
USED = 0.01  # of an even share; a moving average never is 0

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes, in place."""


def nearest_codes(
    z: Float32[Tensor, "rows code"], codes: Float32[Tensor, "K code"], *, at_once: int = BLOCK_NUMBERS
) -> Int64[Tensor, " rows"]:
    """Return the id of the code with the largest cosine, of equal ones the lowest; -1 for a row that is not finite.

    Args:
        z, codes: unit rows.
        at_once: scores that exist at the same time; changes nothing but memory.
    """
    blocks = z.split(max(1, at_once // len(codes)))
    # argmax names the first of equal scores, unlike max on a GPU
    ids = torch.cat([(block @ codes.T).argmax(1) for block in blocks])
    return ids.masked_fill_(~torch.isfinite(z).all(1), NOT_FINITE)


class EmaCodebook(nn.Module):
    """K codes, and how often each was used lately.

    Attributes:
        codes: [K, code], unit rows.
        usage: [K], shares that add up to 1: the moving average of each code's share of a step's vectors.
    """

    codes: Tensor
    usage: Tensor
    split_directions: Tensor

    def __init__(self, vocabulary: int, code_width: int, options: VQKDCodebookOptions, *, seed: int) -> None:
        super().__init__()
        self.options = options
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("codes", F.normalize(torch.randn(vocabulary, code_width, generator=generator), dim=1))
        self.register_buffer("usage", torch.full((vocabulary,), 1 / vocabulary))
        directions = F.normalize(torch.randn(vocabulary, code_width, generator=generator), dim=1)
        self.register_buffer("split_directions", directions, persistent=False)
        # [K, C + 1], sums of vectors and their counts. No buffer: DistributedDataParallel would overwrite each
        # process's own with the first one's.
        self._statistics: Tensor | None = None

    def nearest(self, z: Float32[Tensor, "rows code"]) -> Int64[Tensor, " rows"]:
        """Return the ids of the codes nearest to unit vectors, as `nearest_codes` does."""
        return nearest_codes(z, self.codes)

    # It keeps a tensor for the next call, which a compiled graph would have to hand in and out.
    @torch.compiler.disable
    @torch.no_grad()
    def count(self, z: Float32[Tensor, "rows code"], ids: Int64[Tensor, " rows"]) -> None:
        """Add a piece of a step to its statistics; nothing else changes before `finish_step`.

        Args:
            ids: of the codes that the vectors z fall on, 0 to K - 1.
        """
        rows = torch.cat([z, z.new_ones(len(z), 1)], dim=1)
        self._statistics = self._of_step().index_add_(0, ids, rows)

    @torch.no_grad()
    def finish_step(self, total: Total) -> None:
        """Move the codes by what was counted since the last time, over all processes; then revive dead ones."""
        self._move(total(self._of_step()), self.options.decay)

    @torch.no_grad()
    def start(self, z: Float32[Tensor, "rows code"], *, iterations: int, seed: int) -> None:
        """Start at centres of the unit vectors z: spherical k-means from K of them; dead codes are revived in between.

        Raises:
            ModelError: there are fewer vectors than codes.
        """
        if len(z) < len(self.codes):
            raise ModelError(
                f"{len(z):,} patches to start {len(self.codes):,} codes from, expected at least one for each: take "
                "more images (fit_vqkd.start_images) or a smaller fit_vqkd.network.vocabulary"
            )
        first = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))[: len(self.codes)]
        self.codes.copy_(z[first.to(z.device)])
        self.usage.fill_(1 / len(self.codes))
        for _ in range(iterations):
            self.count(z, self.nearest(z))
            self._move(self._of_step(), decay=0.0)

    @property
    def used_share(self) -> Float[Tensor, ""]:
        """Share of the codes that are used at least a hundredth as much as an even share, 0 to 1."""
        return (self.usage > USED / len(self.usage)).float().mean()

    @property
    def perplexity(self) -> Float[Tensor, ""]:
        """The number of equally used codes that would carry as much, as `models.kmeans.statistics` defines it."""
        return torch.special.entr(self.usage / self.usage.sum()).sum().exp()

    def _of_step(self) -> Float32[Tensor, "K D"]:
        if self._statistics is None:
            vocabulary, width = self.codes.shape
            self._statistics = self.codes.new_zeros(vocabulary, width + 1)
        return self._statistics

    def _move(self, statistics: Float32[Tensor, "K D"], decay: float) -> None:
        sums, counts = statistics[:, :-1], statistics[:, -1]
        moved = F.normalize(decay * self.codes + (1 - decay) * F.normalize(sums, dim=1), dim=1)
        # Opposite vectors may cancel: there is no mean to move to then.
        stays = (counts == 0) | (moved.norm(dim=1) == 0)
        self.codes.copy_(torch.where(stays[:, None], self.codes, moved))
        self.usage.mul_(decay).add_(counts / counts.sum().clamp(min=1), alpha=1 - decay)
        self._statistics = None
        self._revive()

    def _revive(self) -> None:
        """Halve the most used codes, in order of usage, with the dead ones, in order of id.

        Only what is used more than an even share is worth two codes; dead ones that find none wait for the next step.
        How many pairs there are only the device knows, which is not asked: every code is paired, and few pairs count.
        """
        is_dead = self.usage < self.options.revive_below / len(self.usage)
        dead = is_dead.logical_not().byte().argsort(stable=True)  # they come first
        shared = self.usage.argsort(descending=True, stable=True)
        counts = is_dead[dead] & (self.usage[shared] > 1 / len(self.usage))
        step = SPLIT * self.split_directions[dead]
        for codes, halves in ((dead, self.codes[shared] - step), (shared, self.codes[shared] + step)):
            self.codes[codes] = torch.where(counts[:, None], F.normalize(halves, dim=1), self.codes[codes])
        half = self.usage[shared] / 2
        for codes in (dead, shared):
            self.usage[codes] = torch.where(counts, half, self.usage[codes])
