"""Squares that are kept instead of decoded anew: what they are, before any is made, and whether tokens go with them."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pipeline.data.decoding_options import DecodingOptions
from pipeline.engine.fingerprint import defining_options
from pipeline.engine.words import counted
from storage.artifact import Artifact, Recipe
from storage.errors import StoreMismatch
from storage.image_index import ImageIndex, ImageStatus
from storage.image_records import recorded_checksums
from storage.square_store import SquareStore, square_bytes
from storage.token_store import TokenStore

if TYPE_CHECKING:
    from pipeline.data.decode import SquareOptions

logger = logging.getLogger("mapet.stages")


@dataclass(frozen=True)
class KeptSquares:
    """The squares of a pre-training: central, and nothing done to their pixels.

    Attributes:
        image_size: their side.
        decoding: how they become pixels; how many bad images are allowed, too.
    """

    STAGE: ClassVar[str] = "store_squares"
    VERSION: ClassVar[int] = 1
    INTERPOLATION: ClassVar[str] = "bicubic"

    image_size: int
    decoding: DecodingOptions

    def recipe(self, images: str) -> Recipe:
        """Return the recipe of their store. `images`: digest of the image index."""
        definition = {
            "image_size": self.image_size,
            "interpolation": self.INTERPOLATION,
            "decoding": defining_options(self.decoding),
        }
        return Recipe(self.STAGE, self.VERSION, definition, {"images": images})

    @property
    def square(self) -> "SquareOptions":
        from pipeline.data.decode import SquareOptions  # PIL, for which a plan need not wait

        return SquareOptions(self.image_size, self.INTERPOLATION, self.decoding.preset, self.decoding.max_pixels)

    def bytes(self, images: int) -> int:
        """Return what those of so many images take on the disk."""
        return images * square_bytes(self.image_size)

    def words(self, images: int) -> str:
        """Say what takes the disk."""
        return f"keeping the squares of {images:,} images at {self.image_size} pixels (settings.stored_squares)"


def squares_of_tokens(squares: Artifact | None, tokens: Artifact | None, images: Artifact) -> Artifact | None:
    """Return the square store if every image that has tokens has a square in it, of the same bytes; else None, and say
    why.

    Raises:
        StoreMismatch: it was made for other images.
    """
    if squares is None:
        return None
    store = SquareStore.open(squares.path)
    if store.index_digest != images.digest:
        raise StoreMismatch(
            f"{squares.path}: squares of image index {store.index_digest[:12]}, the images given have index "
            f"{images.digest[:12]} ({images.path}); squares belong to rows of their own index"
        )
    if tokens is None:
        return squares
    wanted = TokenStore(tokens.path).status == ImageStatus.VALID
    kept, seen = (recorded_checksums(one.path, len(store))[0] for one in (squares, tokens))
    unfit = np.flatnonzero(wanted & ((store.status != ImageStatus.VALID) | (kept != seen)))
    if not len(unfit):
        return squares
    name = ImageIndex.read(images.path).name(int(unfit[0]))
    logger.warning(
        "%s: %s with tokens have no square of the same bytes there (%s first): images are decoded instead",
        *(squares.path, counted(len(unfit), "image"), name),
    )
    return None
