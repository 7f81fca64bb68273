"""What an objective hides: seeded draws, permutations, and which row attends to which.

All randomness of a training step is a pure function of one seed per image, computed with the finaliser of splitmix64
(Steele, Lea, Flood 2014) in 64-bit integers: the same numbers on every device, in every batch and on every process,
without a generator whose state would have to be saved.
"""

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1

PERMUTATION_STREAM = 0
DROP_PATH_STREAM = 1


def corruption_seeds(run_seed: int, epoch: int, rows: Int64[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """Derive one seed per image: another one in every epoch and for every run seed.

    Args:
        rows: of the images in the image index.
    """
    key = _mix_word(_mix_word(run_seed + _GOLDEN) ^ (epoch & _WORD))
    return _mix(rows ^ _signed(key))


# Compiled for a CPU by torch 2.15, this arithmetic overflows at compile time, and sorting numbers that were computed in
# the same graph gives wrong orders and corrupts memory; it runs once a step and gains nothing from being compiled.
@torch.compiler.disable
def random_bits(seeds: Int64[Tensor, " B"], count: int, stream: int) -> Int64[Tensor, "B {count}"]:
    """Draw `count` numbers uniform in [0, 2^63) per seed; streams are independent of each other.

    The upper 63 bits of `pipeline.encoding.sampling.patch_hashes(seeds, patches=count, seed=stream)`.
    """
    start = _mix(seeds ^ _signed(_mix_word(stream + _GOLDEN)))
    steps = torch.arange(1, count + 1, device=seeds.device) * _signed(_GOLDEN)
    return _shift(_mix(start[:, None] + steps), 1)


def uniforms(seeds: Int64[Tensor, " B"], count: int, stream: int) -> Float64[Tensor, "B {count}"]:
    """Draw `count` multiples of 2^-53, uniform in [0, 1), per seed; exact, so equal on every device."""
    return (random_bits(seeds, count, stream) >> 10).double() * 2.0**-53


@torch.compiler.disable  # see `random_bits`
def permutations(seeds: Int64[Tensor, " B"], patches: int) -> Int64[Tensor, "B {patches}"]:
    """Draw a uniformly random order of the patches per seed: position -> patch in raster order."""
    # Two equal keys of 63 bits are a matter of 1 in 10^14 images; a stable sort orders them alike everywhere.
    return random_bits(seeds, patches, PERMUTATION_STREAM).argsort(dim=1, stable=True)


def two_stream_attention_mask(patches: int, context: int, *, masks: bool) -> Bool[Tensor, "Q S"]:
    """Return which row attends to which key in the two-stream network of MaPeT and PIM; the same for every image.

    Patches are in permuted order. Rows: class token, all patches, a mask row M for every predicted patch (only if
    `masks`), then a query row for every predicted patch. Keys and values: all rows but the queries, which nobody sees.

    A row with horizon h sees the content of all positions before h and the masks of all predicted patches from h on,
    thus every position exactly once, as content or as mask:

        class token, context patches, mask rows: up to the first predicted patch, so no predicted content is seen;
        predicted patch t, as content: t included (its own mask is not seen);
        predicted patch t, as query: t excluded (its own mask is seen).

    Args:
        patches: N.
        context: C, the number of patches that are context: the first of the order.
        masks: True for MaPeT; False leaves the mask rows out, which is PIM.

    Returns:
        [1 + N + P + P, 1 + N + P] with `masks`, else [1 + N + P, 1 + N]; P = N - C. True: attends.
    """
    first = 1 + context  # the class token has position 0
    positions = torch.arange(1 + patches)
    predicted = positions[first:]
    content = torch.where(positions < first, first, positions + 1)
    mask_rows = torch.full_like(predicted, first) if masks else predicted[:0]
    horizon = torch.cat([content, mask_rows, predicted])[:, None]
    before = positions < horizon
    return torch.cat([before, predicted >= horizon], dim=1) if masks else before


def _mix(x: Tensor) -> Tensor:
    """Apply the finaliser of splitmix64 to int64; wrapping around is meant."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift to the right as if unsigned: torch's own shift copies the sign."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _mix_word(x: int) -> int:
    """Apply `_mix` to one number, unsigned."""
    x &= _WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _WORD
    return x ^ (x >> 31)


def _signed(word: int) -> int:
    """Return the int64 with the bits of an unsigned word."""
    return word - 2**64 if word >= 2**63 else word
