"""Squares of unlabelled images: randomly cut and mirrored to train on, as a tokenizer sees them to measure on.

Nothing is joined to an image here, so one that cannot be decoded needs no hole: the next image of its split that can
takes its place, everywhere and always the same. Each bad image is written down once, with its reason, and a stage says
how many there were.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from models.encoders.preprocessing import Preprocessing
from pipeline.data.decode import DecodedImage, read_and_decode
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.image_feed import ImageFeed
from pipeline.data.labelled_images import seeded
from pipeline.data.sources.base import ImageReader, ImageSource
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.words import counted
from storage.image_index import ImageEntry, ImageIndex

logger = logging.getLogger("mapet.stages")
BAD_IMAGES = "bad_images.jsonl"
_RATIO = (3 / 4, 4 / 3)  # width over height of a random crop, torchvision's and timm's default


@dataclass(frozen=True)
class RandomSquare:
    """torchvision's RandomResizedCrop, bicubic, then a mirror; draws from torch's global generator.

    Attributes:
        smallest: least share of the image that a crop shows.
        flip: chance of mirroring.
    """

    image_size: int
    smallest: float
    flip: float

    def __call__(self, rgb: Image.Image) -> np.ndarray:
        """Return uint8 [3, side, side]."""
        top, left, height, width = RandomResizedCrop.get_params(rgb, (self.smallest, 1.0), _RATIO)
        crop = rgb.crop((left, top, left + width, top + height))
        square = np.asarray(crop.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC))
        mirrored = square[:, ::-1] if float(torch.rand(())) < self.flip else square
        return mirrored.transpose(2, 0, 1)


class SquareCrops(ImageFeed):
    """Batches of `(pixels uint8 [B, 3, side, side], seeds int64 [B])`.

    Args:
        preprocessing: the square and its side.
        augmentation: makes the squares that are trained on; the others are central.
        folder: of the run, where bad images are written down.
    """

    def __init__(
        self,
        index: ImageIndex,
        source: ImageSource,
        *,
        train_rows: np.ndarray,
        val_rows: np.ndarray,
        preprocessing: Preprocessing,
        augmentation: RandomSquare,
        decoding: DecodingOptions,
        folder: Path,
        seed: int,
        settings: Settings,
    ) -> None:
        super().__init__(index, source, train_rows=train_rows, val_rows=val_rows, seed=seed, settings=settings)
        self._preprocessing, self._augmentation, self._decoding = preprocessing, augmentation, decoding
        self._bad = BadImageList(folder, decoding)

    @property
    def image_bytes(self) -> int:
        return 3 * self._preprocessing.image_size**2

    def decode(self, entries: Iterable[ImageEntry], reader: ImageReader, seeds: Tensor, *, training: bool) -> Tensor:
        side = self._preprocessing.image_size
        pixels = torch.empty((len(seeds), 3, side, side), dtype=torch.uint8)
        for place, (entry, seed) in enumerate(zip(entries, seeds.tolist(), strict=True)):
            square = self._first_good(entry, reader, seed, training=training)
            pixels[place].copy_(torch.from_numpy(np.ascontiguousarray(square)))
        return pixels

    def _first_good(self, entry: ImageEntry, reader: ImageReader, seed: int, *, training: bool) -> np.ndarray:
        """Return the square of an image, or of the first after it that has one.

        Raises:
            PipelineError: there are more bad images than allowed, or no good one.
        """
        image = self._decode(entry, reader, seed, training=training)
        if image.pixels is not None:
            return image.pixels
        for candidate in self._after(entry.row):
            self._bad.add(entry, image.reason)
            entry = candidate
            image = self._decode(entry, reader, seed, training=training)
            if image.pixels is not None:
                return image.pixels
        raise PipelineError(f"{entry.name}: {image.reason}; and no other image of its split can be decoded")

    def _after(self, row: int) -> Iterator[ImageEntry]:
        """Yield the other images of its split, from the next one round to the one before."""
        rows = self.train_rows if row in self.train_rows else self.val_rows
        place = int(np.searchsorted(rows, row))
        yield from (self.index.entry(int(other)) for other in (*rows[place + 1 :], *rows[:place]))

    def _decode(self, entry: ImageEntry, reader: ImageReader, seed: int, *, training: bool) -> DecodedImage:
        cut = self._augmentation if training else None
        preset, most = self._decoding.preset, self._decoding.max_pixels
        with seeded(seed):
            return read_and_decode(reader, entry, self._preprocessing, preset=preset, max_pixels=most, cut=cut)


class BadImageList:
    """The images of a run that cannot be decoded: one line each in a file to which all workers append."""

    def __init__(self, folder: Path, decoding: DecodingOptions) -> None:
        self._path, self._decoding = folder / BAD_IMAGES, decoding
        self._known: set[int] = set()  # by this worker

    def add(self, entry: ImageEntry, reason: str) -> None:
        """Write an image down, once.

        Raises:
            PipelineError: no bad image is allowed, or not so many.
        """
        if entry.row in self._known:
            return
        if self._decoding.on_bad_image == "fail":
            raise PipelineError(f"{entry.name}: {reason}; mend or remove it, or set decoding.on_bad_image=mark")
        self._known.add(entry.row)
        with self._path.open("a") as file:  # a line is written at once: lines of two workers do not mix
            file.write(json.dumps({"row": entry.row, "name": entry.name, "reason": reason}) + "\n")
        if (found := len(_lines(self._path))) > self._decoding.max_bad_images:
            bad = counted(found, "image is", "images are")
            raise PipelineError(
                f"{bad} bad, {self._decoding.max_bad_images} are allowed ({entry.name}: {reason}); `mapet verify` on "
                "the data set lists them all: mend it, or raise decoding.max_bad_images"
            )


def settle_bad_images(folder: Path) -> int:
    """Sort the list of a finished run, so that it is the same whoever found them first; returns how many there are."""
    path = folder / BAD_IMAGES
    lines = _lines(path)
    path.write_text("".join(line + "\n" for line in lines))
    if lines:
        first = json.loads(lines[0])
        logger.warning(
            "%s cannot be decoded, others took their places: %s: %s%s",
            *(counted(len(lines), "image"), first["name"], first["reason"]),
            f"; {path.name} lists them all" if len(lines) > 1 else "",
        )
    return len(lines)


def _lines(path: Path) -> list[str]:
    """Return one line for each bad image, by row; half a line at the end, which a killed worker leaves, is not one."""
    if not path.exists():
        return []
    whole = {line.strip() for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")}
    return sorted(whole, key=lambda line: int(json.loads(line)["row"]))
