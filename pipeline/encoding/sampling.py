"""The keyed sample of patch features: planned from the image index alone, before any encoder runs.

Every (image, patch) gets a 64-bit hash of (seed, image id, patch): two rounds of the splitmix64 finaliser. The sample
is the bottom k of those hashes, with k = round(fraction x images x patches) exactly. So it depends on the seed and on
which images there are, and on nothing else: not on their order, on sharding, on the number of workers or on restarts.
(2 % of the vectors of all images; 2 % of the images with all their vectors would have 39 % of the effective size.)
"""

from dataclasses import dataclass

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_IMAGES_PER_BLOCK = 1 << 10  # hashes of a block stay in the cache of a core


@dataclass(frozen=True)
class SamplePlan:
    """Which patches of which images to keep, sorted by (position, patch). `positions` index the ids that were given."""

    positions: np.ndarray  # int64 [k]
    patches: np.ndarray  # int32 [k]

    def __len__(self) -> int:
        return len(self.positions)


def plan_sample(image_ids: np.ndarray, *, patches: int, fraction: float, seed: int) -> SamplePlan:
    """Choose round(fraction x images x patches) patches, at least one. `image_ids` uint64 [images], distinct.

    3 CPU-seconds for the 251 million patches of ImageNet.
    """
    total = len(image_ids) * patches
    if total == 0:
        return SamplePlan(np.empty(0, np.int64), np.empty(0, np.int32))
    wanted = max(1, round(fraction * total))
    limit = wanted / total
    while True:
        # A threshold a few standard deviations above the quantile leaves few candidates to sort exactly.
        limit = min(1.0, limit + 8 * np.sqrt(limit / total) + 8 / total)
        hashes, flat = _candidates(image_ids, patches, seed, limit)
        if len(hashes) >= wanted:
            break
    owner = image_ids[flat // patches]
    chosen = flat[np.lexsort((flat % patches, owner, hashes))[:wanted]]
    chosen.sort()
    return SamplePlan(chosen // patches, (chosen % patches).astype(np.int32))


def patch_hashes(image_ids: np.ndarray, *, patches: int, seed: int) -> np.ndarray:
    """Hash every patch of every image: uint64 [images, patches]."""
    key = _finalise(np.array([seed], np.uint64) + _GOLDEN)
    images = _finalise(image_ids.astype(np.uint64) ^ key)
    steps = (np.arange(1, patches + 1, dtype=np.uint64)) * _GOLDEN
    return _finalise(images[:, None] + steps)


def _candidates(image_ids: np.ndarray, patches: int, seed: int, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes up to `limit` of the range, and their flat positions image * patches + patch."""
    threshold = np.uint64(min(int(limit * 2.0**64), 2**64 - 1))
    hashes, flat = [], []
    for start in range(0, len(image_ids), _IMAGES_PER_BLOCK):
        block = patch_hashes(image_ids[start : start + _IMAGES_PER_BLOCK], patches=patches, seed=seed).reshape(-1)
        below = np.flatnonzero(block <= threshold)
        hashes.append(block[below])
        flat.append(below + start * patches)
    return np.concatenate(hashes), np.concatenate(flat)


def _finalise(x: np.ndarray) -> np.ndarray:
    """Apply the finaliser of splitmix64 (Steele, Lea, Flood 2014); unsigned overflow is meant."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
