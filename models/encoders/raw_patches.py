"""Patches as they are: the feature of a patch is its pixels. What clustering says without any network before it.

    feature = (x / 255 - 1/2) / (1/2) of the p x p pixels of a patch, channel by channel, each in raster order

The baseline that k-CLIP and VQ-KD have to beat: its k-means is vector quantisation in the sense of the textbooks.
"""

import hashlib

import torch
import torch.nn.functional as F
from jaxtyping import Float16, UInt8
from torch import Tensor

from models.encoders.arithmetic import normalised, require_pixels
from models.encoders.base import PatchEncoder
from models.encoders.options import RawPatchOptions
from models.encoders.preprocessing import Preprocessing
from models.errors import ModelError

HALF = (0.5, 0.5, 0.5)


class RawPatchEncoder(PatchEncoder):
    """Pixels of patches, [B, N, 3 p^2]; nothing is learned.

    Raises:
        ModelError: the image is not a whole number of patches.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, options: RawPatchOptions):
        super().__init__()
        size, patch = options.image_size, options.patch_size
        if size % patch:
            raise ModelError(f"pixels: image_size {size} is not a multiple of patch_size {patch}")
        self.name = f"raw patches of {patch} px"
        self.preprocessing = Preprocessing(size, HALF, HALF)
        self.patch_size = patch
        self.grid = (size // patch, size // patch)
        self.width = 3 * patch**2
        self.precision = "fp32"
        self.digest = hashlib.sha256(f"raw patches {patch}".encode()).hexdigest()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.full((3, 1, 1), HALF[0]), persistent=False)

    def forward(self, images: UInt8[Tensor, "B 3 side side"]) -> Float16[Tensor, "B N D"]:
        """Cut the images into patches; all features are finite."""
        require_pixels(images, self.preprocessing.image_size, name=self.name)
        patches = F.unfold(normalised(images, self.mean, self.std), self.patch_size, stride=self.patch_size)
        return patches.transpose(1, 2).to(torch.float16).contiguous()
