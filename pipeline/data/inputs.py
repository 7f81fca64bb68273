"""What stages take that is more than an artifact: where it came from counts too."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from models.clip.options import LOCAL_DIR, ClipOptions
from models.options import Options
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.stage import Made, Source

VQKD_FILE = "vqkd.pth"  # of a VQ-KD that was trained here

Kind = TypeVar("Kind", bound=Options)


@dataclass(frozen=True)
class ImageLocation:
    """Where images are.

    Attributes:
        drawn: the stage that draws the demo's images, which are then there.
    """

    options: ImageSourceOptions
    drawn: Source | None = None

    def options_in(self, made: Made) -> ImageSourceOptions:
        """Return the options with a path, also of images that were drawn."""
        if self.drawn is None:
            return self.options
        return self.options.model_copy(update={"kind": "folder", "path": str(made[self.drawn].path)})


@dataclass(frozen=True)
class Images:
    """The image index that gives each image its row, and the images themselves."""

    index: Source
    location: ImageLocation

    def source_in(self, made: Made) -> ImageSourceOptions:
        """Return the options of the source that holds the images."""
        return self.location.options_in(made)


@dataclass(frozen=True)
class Network(Generic[Kind]):
    """A network that encodes images.

    Attributes:
        trained: the stage that trains it; None: it is loaded as its options say.
    """

    options: Kind
    trained: Source | None = None

    def options_in(self, made: Made) -> Kind:
        """Return the options with the place of the weights, also of a network that was trained."""
        if self.trained is None:
            return self.options
        folder = made[self.trained].path
        if isinstance(self.options, ClipOptions):
            return self.options.model_copy(update={"model": f"{LOCAL_DIR}{folder}"})
        return self.options.model_copy(update={"checkpoint": str(folder / VQKD_FILE)})
