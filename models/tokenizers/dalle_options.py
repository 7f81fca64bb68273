"""The choices of DALL-E's encoder."""

from pydantic import Field

from models.options import Options, PathText


class DalleOptions(Options):
    """DALL-E's encoder, and the images it sees."""

    checkpoint: PathText = ""
    """Its weights: what `mapet convert-dalle` makes of the published encoder.pkl, or any plain state dict of it."""
    image_size: int = Field(default=112, ge=1, le=4096)
    """Side of the input in pixels, a multiple of 8; 112 gives the 14 x 14 tokens of BEiT and MaPeT."""
