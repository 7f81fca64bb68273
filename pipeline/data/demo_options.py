"""The choices of the demo's images."""

from pydantic import Field

from models.options import Options, Seed


class DemoImagesOptions(Options):
    """How the demo's images are drawn."""

    image_size: int = Field(default=64, ge=16, le=4096)
    """Side of the square images, in pixels."""
    renderings: int = Field(default=4, ge=1, le=10_000)
    """Images per training digit, each with its own pose, colour and background; a val digit is drawn once."""
    seed: Seed = 0
    """Seed of poses, colours and backgrounds. Which digits are train and which are val does not depend on it."""
    limit: int | None = Field(default=None, ge=20, le=1797)
    """Draw only the first digits of the data set, for quick trials; all 1,797 unless given."""


class DemoSegmentationOptions(Options):
    """How many of the demo's images get label maps."""

    train_images: int = Field(default=400, ge=10, le=1797)
    """To train on; spread over the digits."""

    val_images: int = Field(default=120, ge=10, le=1797)
    """To measure on; spread over the digits."""
