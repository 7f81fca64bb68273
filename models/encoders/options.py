"""The choices of patches as they are."""

from pydantic import Field

from models.options import Options


class RawPatchOptions(Options):
    """How images are cut."""

    image_size: int = Field(default=224, ge=1, le=4096)
    """Side of the square in pixels."""
    patch_size: int = Field(default=16, ge=1, le=4096)
    """Side of a patch in pixels; 16 of 224 give the 14 x 14 patches of k-CLIP and VQ-KD."""
