"""Block-wise masks (BEiT, algorithm 1), drawn for a whole batch at once, on the device.

The sequential algorithm, for one image with n patches still to be masked: propose a block of area U(min, n) and of
aspect exp U(ln 0.3, -ln 0.3) at a uniform place; take it if its sides are below the grid's and it masks at least one
new patch but not more than n; after ten proposals in a row that were not taken, stop. BEiT v2 then masks random
patches until the number is exact, which a batch of equal lengths needs.

Here every image makes its next proposal in the same round, and one that is complete or has stopped takes none. A
proposal depends on nothing but the seed and n, so an image gets exactly the mask that it would get alone: the law is
that of the sequential algorithm. The number of rounds is fixed, so that the device is never waited for.

Bao et al., BEiT: BERT pre-training of image transformers (2106.08254); Peng et al., BEiT v2 (2208.06366).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64
from torch import Tensor

from models.constants import constant
from models.errors import ModelError
from models.masking import uniforms

# Proposals per image. 75 of 196 patches need 11 on average and 99.9 % of images at most 31; for the few that need more,
# the remaining patches are random ones, as for those that stop.
ROUNDS = 48
LOWEST_ASPECT = 0.3  # blocks are between 0.3 and 1 / 0.3 times as high as they are wide
NUMBERS_PER_ROUND = 4  # area, aspect, top, left
PROPOSALS, TOP_UP = 16, 17  # streams of random numbers, apart from those of `models.masking`


@dataclass(frozen=True)
class Blocks:
    """`masked`: patches in blocks; `added`: how many of them each round masked, 0 if it took no block."""

    masked: Bool[Tensor, "B N"]
    added: Int64[Tensor, "B rounds"]


def smallest_block(min_block: int, masked: int) -> int:
    """Return `min_block`, or a quarter of the masked patches if that is less: small grids too get several blocks.

    The paper's 16 stays for 64 or more masked patches; on a 4x4 grid with 6 masked, blocks start at one patch (with 16,
    two fifths of such images would get no block at all).
    """
    return max(1, min(min_block, masked // 4))


def check_masked(masked: int, patches: int) -> None:
    """Refuse to mask nothing or everything.

    Raises:
        ModelError: `masked` is not between 1 and `patches` - 1.
    """
    if not 0 < masked < patches:
        raise ModelError(f"block masks: {masked} masked patches of {patches}; expected between 1 and {patches - 1}")


# Compiled, the rounds would be unrolled into a thousand operations: 12 s of tracing alone, for what runs once a step.
@torch.compiler.disable
def block_masks(
    seeds: Int64[Tensor, " B"], grid: tuple[int, int], masked: int, *, min_block: int = 16, tries: int = 10
) -> Bool[Tensor, "B N"]:
    """Draw masks of exactly `masked` patches, made of blocks; True is masked, patches in raster order.

    Args:
        seeds: one per image; the mask of an image depends on its own seed only.
        grid: patches per column and row.
        min_block: least area of a proposal, see `smallest_block`; an image's last blocks may be smaller.
        tries: proposals in a row that may fail before the rest is masked at random. BEiT: 10. CAE has no such limit:
            `ROUNDS`, with which 5 % of images (98 of 196 masked) still end with one to five random patches.

    Raises:
        ModelError: `masked` is not between 1 and N - 1.
    """
    patches = grid[0] * grid[1]
    check_masked(masked, patches)
    blocks = draw_blocks(seeds, grid, masked, min_block=smallest_block(min_block, masked), tries=tries).masked
    # Those in blocks first, then the highest of random scores.
    scores = uniforms(seeds, patches, TOP_UP) + blocks
    chosen = scores.topk(masked, dim=1, sorted=False).indices
    return torch.zeros_like(blocks).scatter_(1, chosen, True)


def block_order(
    seeds: Int64[Tensor, " B"], grid: tuple[int, int], masked: int, *, min_block: int = 16, tries: int = 10
) -> Int64[Tensor, "B N"]:
    """Map positions to patches: those that `block_masks` (same arguments) leaves, then those that it masks, both in
    raster order."""
    masks = block_masks(seeds, grid, masked, min_block=min_block, tries=tries)
    return masks.byte().argsort(dim=1, stable=True)


def draw_blocks(
    seeds: Int64[Tensor, " B"], grid: tuple[int, int], masked: int, *, min_block: int, tries: int
) -> Blocks:
    """Draw the blocks alone: never more than `masked` patches, often fewer. Arguments as for `block_masks`."""
    proposals, spans = _proposals(seeds, grid, masked, min_block=min_block), _spans(max(grid), seeds.device)
    free = torch.ones(len(seeds), *grid, dtype=torch.bool, device=seeds.device)
    wanted = torch.full_like(seeds, masked)
    blocks, states = [], [wanted]
    # A GPU's host takes longer to launch a small kernel than the GPU to run it, and a round is eleven of them. So
    # what depends on no earlier round is outside: proposals, and which images had stopped, whose later blocks go.
    for turn in range(ROUNDS):
        rows, columns = spans[proposals[:, turn].gather(1, wanted.view(-1, 1, 1).expand(-1, 1, 2))].unbind(2)
        blocks.append(free & (rows[:, 0, : grid[0], None] & columns[:, :, : grid[1]]))
        left = wanted - blocks[-1].sum((1, 2))
        fits = left >= 0
        wanted = torch.where(fits, left, wanted)
        free = free ^ (blocks[-1] & fits[:, None, None])
        states.append(wanted)
    added = -torch.stack(states, dim=1).diff(dim=1)
    added = added * (_failures(added > 0) < tries)
    masked_patches = torch.stack(blocks, dim=1) & (added > 0)[:, :, None, None]
    return Blocks(masked_patches.any(1).flatten(1), added)


def _proposals(
    seeds: Int64[Tensor, " B"], grid: tuple[int, int], masked: int, *, min_block: int
) -> Int64[Tensor, "B rounds M 2"]:
    """Propose a block for every round and each number of patches that may still be wanted then, 0 to `masked`.

    A block is its rows and its columns, as numbers of `_spans`; empty where a side is not below the grid's.
    """
    numbers = uniforms(seeds, ROUNDS * NUMBERS_PER_ROUND, PROPOSALS).unflatten(1, (ROUNDS, NUMBERS_PER_ROUND))
    stretch = torch.exp((numbers[:, :, 1] - 0.5) * -math.log(LOWEST_ASPECT))  # the root of the aspect
    stretches = torch.stack([stretch, 1 / stretch], dim=2)  # of height and width
    wanted = torch.arange(masked + 1, device=seeds.device)
    area = min_block + numbers[:, :, :1] * (wanted - min_block)  # U(wanted, min_block) once wanted is less
    size = torch.round(area.sqrt()[..., None] * stretches[:, :, None])
    sides = constant(grid, device=seeds.device)
    size.masked_fill_(~(size < sides).all(3, keepdim=True), 0)
    first = torch.floor(numbers[:, :, None, 2:] * (sides - size + 1))
    return (first * (max(grid) + 1) + size).long()


def _spans(side: int, device: torch.device) -> Bool[Tensor, "spans S"]:
    """List every run of places on a side: number f * (side + 1) + n is the n places that begin with f."""
    positions = torch.arange(side + 1, device=device)
    first, axis = positions[:, None, None], positions[:side]
    return ((axis >= first) & (axis < first + positions[:, None])).flatten(0, 1)


def _failures(taken: Bool[Tensor, "B rounds"]) -> Int64[Tensor, "B rounds"]:
    """Count, before each round, the longest run of proposals so far that were not taken."""
    rounds = torch.arange(1, ROUNDS + 1, device=taken.device)
    last = torch.where(taken, rounds, 0).cummax(1).values  # up to each round
    return (rounds - 1 - F.pad(last, (1, -1))).cummax(1).values
