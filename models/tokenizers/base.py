"""The contract of a visual tokenizer: an image becomes a grid of tokens, each an id in a vocabulary."""

from abc import ABC, abstractmethod

from jaxtyping import Int, UInt8
from torch import Tensor, nn

from models.encoders.preprocessing import Preprocessing


class Tokenizer(nn.Module, ABC):
    """Images in, tokens out; frozen.

    The same image gives the same tokens whatever shares its batch and however often it is asked: no state, no
    randomness, evaluation mode. (On a GPU another batch *size* may choose another kernel, whose float rounding can
    turn an exact tie; batches of one size agree bit for bit.)

    Attributes:
        name: the word used in reports, file names and errors.
        vocabulary: K; ids lie in [0, K).
        grid: patches per column and row; N is their product, patches in raster order.
        precision: arithmetic of the network on a GPU; part of the result.
        preprocessing: the square of pixels `forward` wants; the normalisation is the tokenizer's own.
        digest: SHA-256 of all that the tokens depend on, weights and options; paths and devices are not part of it.
    """

    name: str
    vocabulary: int
    grid: tuple[int, int]
    precision: str
    preprocessing: Preprocessing
    digest: str

    @abstractmethod
    def forward(self, images: UInt8[Tensor, "B 3 side side"]) -> Int[Tensor, "B N"]:
        """Tokenize 8-bit RGB images that are already cut to `preprocessing.image_size`.

        Returns:
            int64 ids; -1 where the network gave no finite number. A caller must refuse -1, never store it as a token.

        Raises:
            ModelError: images of another type or size.
        """
