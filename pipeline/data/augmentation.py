"""Augmentation that leaves tokens true: colours change, no pixel moves.

torchvision's ColorJitter(brightness=s, contrast=s, saturation=s) in float32, batched on the device, with every factor
and the order of the three drawn from the image's seed. Each of them is a blend with something darker, flatter, grayer:

    brightness  x <- f x                     contrast  x <- f x + (1 - f) mean(gray(x))
    saturation  x <- f x + (1 - f) gray(x)   f uniform in [1 - s, 1 + s], results cut to [0, 1]
"""

from torch import Tensor

from models.constants import constant
from models.masking import uniforms

_STREAM = 2  # of the draws from an image's seed; 0 and 1 are the corruption's
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)


def colour_jitter(images: Tensor, seeds: Tensor, strength: float) -> Tensor:
    """Return jittered copies.

    Args:
        images: float [B, 3, H, W] in 0..1.
        seeds: int64 [B].
        strength: s above, 0 to 1; 0 returns the images.
    """
    if strength == 0:
        return images
    draws = uniforms(seeds, 4, _STREAM)  # [B, 4]: three factors, and which order
    factors = (1 + strength * (2 * draws[:, :3] - 1)).to(images.dtype)
    orders = constant(_ORDERS, device=images.device)[(draws[:, 3] * len(_ORDERS)).long()]  # [B, 3]
    luma = constant(_LUMA, device=images.device, dtype=images.dtype)[:, None, None]
    for turn in orders.T:
        factor = factors.gather(1, turn[:, None])[:, :, None, None]
        gray = (images * luma).sum(1, keepdim=True)
        flat = gray.mean((2, 3), keepdim=True)
        kind = turn[:, None, None, None]
        # Brightness blends with black.
        other = flat * (kind == _CONTRAST) + gray * (kind == _SATURATION)
        images = (factor * images + (1 - factor) * other).clamp(0, 1)
    return images
