"""Images with a class for every pixel, in the layout of ADE20K's scene parsing benchmark (ADEChallengeData2016).

    <root>/images/{training,validation}/ADE_train_00000001.jpg
    <root>/annotations/{training,validation}/ADE_train_00000001.png     one channel: 0 = other, 1 .. K = the classes

Zhou et al., "Scene Parsing through ADE20K", CVPR 2017. "Other" is not a class: it becomes 255, which neither the loss
nor the metrics count, and class k becomes k - 1. That happens on reading, before anything is padded: padding is 255
too, and must not become 254.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.decode import FORMATS
from pipeline.errors import PipelineError

IGNORED = 255
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
FOLDERS: Mapping[str, str] = MappingProxyType({"train": "training", "val": "validation"})
_LABEL_MODES = ("L", "P")  # 8 bits per pixel, whose values are the labels


@dataclass(frozen=True)
class SegmentedImage:
    """`pixels` uint8 [H, W, 3]; `labels` uint8 [H, W], a class from 0 or 255 = none."""

    name: str
    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class SegmentationImages:
    """The pairs of one split, sorted by name; row i is `names[i]`. Holds nothing open.

    `names` are the images' file names; `classes` is K, without "other".
    """

    root: Path
    split: Literal["train", "val"]
    classes: int
    names: tuple[str, ...]

    @classmethod
    def scan(cls, root: Path, split: Literal["train", "val"], *, classes: int) -> Self:
        """List a split without opening an image.

        Raises:
            PipelineError: a folder is missing or empty, an image has no annotation or the other way round, two images
                share a name, or `classes` is not 1 to 255.
        """
        if not 1 <= classes <= IGNORED:
            raise PipelineError(f"{classes} classes for {root}; labels of 8 bits tell 1 to {IGNORED} apart")
        images, annotations = (_folder(root, kind, split) for kind in ("images", "annotations"))
        _require_folders(images, annotations)
        names = sorted(path.name for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        _require_pairs(images, names, annotations)
        return cls(root, split, classes, tuple(names))

    def __len__(self) -> int:
        return len(self.names)

    def file_sizes(self) -> Iterator[tuple[str, int]]:
        """Path from the root and bytes of every file, images then annotations, in the order of the rows."""
        annotations = [_annotation_of(name, Path()).name for name in self.names]
        for kind, names in (("images", self.names), ("annotations", annotations)):
            with os.scandir(_folder(self.root, kind, self.split)) as entries:
                sizes = {entry.name: entry.stat().st_size for entry in entries}
            yield from ((f"{kind}/{FOLDERS[self.split]}/{name}", sizes[name]) for name in names)

    def read(self, row: int, read: Callable[[Path], bytes] = Path.read_bytes) -> SegmentedImage:
        """One pair, whole, labels counted from 0.

        Args:
            read: gives the bytes of a file; may raise OSError.

        Raises:
            PipelineError: a file cannot be read, sizes differ, or a label is not a class.
        """
        name = self.names[row]
        image = _folder(self.root, "images", self.split) / name
        annotation = _annotation_of(name, _folder(self.root, "annotations", self.split))
        pixels, labels = _read_pixels(image, read), _read_labels(annotation, self.classes, read)
        if pixels.shape[:2] != labels.shape:
            (height, width), (rows, columns) = pixels.shape[:2], labels.shape
            raise PipelineError(
                f"{annotation}: {columns} x {rows} pixels, its image has {width} x {height}; annotate the image at its "
                "own size"
            )
        return SegmentedImage(name, pixels, zero_label_ignored(labels))


def zero_label_ignored(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """0 becomes 255 and k becomes k - 1."""
    return labels - np.uint8(1)  # 8 bits: 0 - 1 is 255


def _folder(root: Path, kind: str, split: str) -> Path:
    return root / kind / FOLDERS[split]


def _annotation_of(name: str, annotations: Path) -> Path:
    return annotations / f"{Path(name).stem}.png"


def _require_folders(*folders: Path) -> None:
    for folder in folders:
        if not folder.is_dir():
            raise PipelineError(
                f"{folder}: no such folder; expected ADE20K's images/ and annotations/ beside each other"
            )


def _require_pairs(images: Path, names: list[str], annotations: Path) -> None:
    if not names:
        raise PipelineError(f"{images}: no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    twins = {Path(name).stem: name for name in names}
    if len(twins) < len(names):
        twin = next(name for name in names if name not in twins.values())
        raise PipelineError(f"{images / twin}: another image has this name with another ending; keep one of them")
    annotated = {path.stem for path in annotations.glob("*.png")}
    if lonely := sorted(twins.keys() - annotated):
        path = images / twins[lonely[0]]
        raise PipelineError(f"{path}: no annotation {_annotation_of(path.name, annotations)}{_more(lonely)}")
    if lonely := sorted(annotated - twins.keys()):
        raise PipelineError(f"{annotations / lonely[0]}.png: no image of this name in {images}{_more(lonely)}")


def _more(names: list[str]) -> str:
    return f", nor for {len(names) - 1} more" if len(names) > 1 else ""


def _read_pixels(path: Path, read: Callable[[Path], bytes]) -> NDArray[np.uint8]:
    with _opened(path, read) as image:
        return np.array(_loaded(image, path).convert("RGB"))


def _read_labels(path: Path, classes: int, read: Callable[[Path], bytes]) -> NDArray[np.uint8]:
    with _opened(path, read) as image:
        if image.mode not in _LABEL_MODES:
            raise PipelineError(
                f"{path}: pixels of mode {image.mode}, expected one channel of 8 bits; the full ADE20K's colour masks "
                "have to be converted to those of the scene parsing benchmark"
            )
        labels = np.array(_loaded(image, path))
    if labels.max() > classes:
        raise PipelineError(f"{path}: label {labels.max()}, expected 0 (other) to {classes} (the last class)")
    return labels


def _opened(path: Path, read: Callable[[Path], bytes]) -> Image.Image:
    try:
        return Image.open(BytesIO(read(path)), formats=FORMATS)
    except (OSError, Image.DecompressionBombError) as error:
        raise PipelineError(f"{path}: cannot be read ({error}); restore the file") from None


def _loaded(image: Image.Image, path: Path) -> Image.Image:
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise PipelineError(f"{path}: damaged ({error}); restore the file") from None
    return image
