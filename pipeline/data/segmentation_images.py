"""Images with a class for every pixel, in the layout of ADE20K's scene parsing benchmark (ADEChallengeData2016).

    <root>/images/{training,validation}/ADE_train_00000001.jpg
    <root>/annotations/{training,validation}/ADE_train_00000001.png     one channel: 0 = other, 1 .. K = the classes

Zhou et al., "Scene Parsing through ADE20K", CVPR 2017. "Other" is not a class: it becomes 255, which neither the loss
nor the metrics count, and class k becomes k - 1. That happens on reading, before anything is padded: padding is 255
too, and must not become 254. Annotations that count their classes from 0 (and say 255 for "other") are read as they
are when `label_zero` is `class`. Hidden files, such as the `._*` that macOS leaves behind, are no data.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.formats import ENDINGS, ending_of, open_image
from pipeline.data.rgb import to_rgb
from pipeline.data.sources.names import is_hidden
from pipeline.engine.errors import PipelineError

IGNORED = 255
FOLDERS: Mapping[str, str] = MappingProxyType({"train": "training", "val": "validation"})
LabelZero = Literal["other", "class"]
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

    `names` are the images' file names; `classes` is K, without "other"; `label_zero` says what a 0 is.
    """

    root: Path
    split: Literal["train", "val"]
    classes: int
    names: tuple[str, ...]
    label_zero: LabelZero = "other"

    @classmethod
    def scan(cls, root: Path, split: Literal["train", "val"], *, classes: int, label_zero: LabelZero = "other") -> Self:
        """List a split without opening an image.

        Raises:
            PipelineError: a folder is missing or empty, an image has no annotation or the other way round, two images
                share a name, or `classes` is not 1 to 255.
        """
        if not 1 <= classes <= IGNORED:
            raise PipelineError(f"{classes} classes for {root}; labels of 8 bits tell 1 to {IGNORED} apart")
        images, annotations = (_folder(root, kind, split) for kind in ("images", "annotations"))
        _require_folders(images, annotations)
        names = sorted(path.name for path in images.iterdir() if _is_image(path))
        _require_pairs(images, names, annotations)
        return cls(root, split, classes, tuple(names), label_zero)

    def __len__(self) -> int:
        return len(self.names)

    def file_sizes(self) -> Iterator[tuple[str, int]]:
        """Yield the path from the root and bytes of every file, images then annotations, in the order of the rows."""
        annotations = [_annotation_of(name, Path()).name for name in self.names]
        for kind, names in (("images", self.names), ("annotations", annotations)):
            with os.scandir(_folder(self.root, kind, self.split)) as entries:
                sizes = {entry.name: entry.stat().st_size for entry in entries}
            yield from ((f"{kind}/{FOLDERS[self.split]}/{name}", sizes[name]) for name in names)

    def read(self, row: int, read: Callable[[Path], bytes] = Path.read_bytes) -> SegmentedImage:
        """Return one pair, whole, labels counted from 0.

        Args:
            read: gives the bytes of a file; may raise OSError.

        Raises:
            PipelineError: a file cannot be read, sizes differ, or a label is not a class.
        """
        name = self.names[row]
        image = _folder(self.root, "images", self.split) / name
        annotation = _annotation_of(name, _folder(self.root, "annotations", self.split))
        pixels, labels = _read_pixels(image, read), self.label_map(row, read)
        if pixels.shape[:2] != labels.shape:
            (height, width), (rows, columns) = pixels.shape[:2], labels.shape
            raise PipelineError(
                f"{annotation}: {columns} x {rows} pixels, its image has {width} x {height}; annotate the image at its "
                "own size"
            )
        return SegmentedImage(name, pixels, labels if self.label_zero == "class" else zero_label_ignored(labels))

    def label_map(self, row: int, read: Callable[[Path], bytes] = Path.read_bytes) -> NDArray[np.uint8]:
        """Return the annotation as it is in its file, uint8 [H, W]. Raises PipelineError when a label is not a
        class."""
        path = _annotation_of(self.names[row], _folder(self.root, "annotations", self.split))
        labels = _read_labels(path, read)
        if self.label_zero == "class":
            wrong = labels[(labels >= self.classes) & (labels != IGNORED)]
            expected = f"0 (the first class) to {self.classes - 1}, or {IGNORED} (other)"
        else:
            wrong = labels[labels > self.classes]
            expected = f"0 (other) to {self.classes} (the last class); if 0 is a class, segmentation.label_zero=class"
        if len(wrong):
            raise PipelineError(f"{path}: label {wrong.max()}, expected {expected}")
        return labels


def require_clear_zero(splits: Iterable[SegmentationImages]) -> None:
    """Ask what label 0 is where the annotations leave it open. As a rule the first few tell, else all are opened.

    Raises:
        PipelineError: 0 and K - 1 occur and K nowhere: either the last class is missing, or labels count from 0.
    """
    seen, classes = np.zeros(IGNORED + 1, dtype=bool), 0
    for images in splits:
        classes = images.classes
        for row in range(len(images)):
            seen[np.unique(images.label_map(row))] = True
            if seen[classes]:
                return
    if seen[0] and seen[classes - 1]:
        raise PipelineError(
            f"the annotations hold labels from 0 to {classes - 1} and never {classes}: either 0 is 'other' and the "
            f"last class does not occur (segmentation.label_zero=other), or 0 is the first of {classes} classes "
            "(segmentation.label_zero=class)"
        )


def zero_label_ignored(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Make 255 of 0, and k - 1 of k."""
    return labels - np.uint8(1)  # 8 bits: 0 - 1 is 255


def _is_image(path: Path) -> bool:
    return ending_of(path.name) in ENDINGS and not is_hidden(path.name)


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
        raise PipelineError(f"{images}: no images; expected files ending in .jpg, .png, or another image's ending")
    twins = {Path(name).stem: name for name in names}
    if len(twins) < len(names):
        twin = next(name for name in names if name not in twins.values())
        raise PipelineError(f"{images / twin}: another image has this name with another ending; keep one of them")
    annotated = {path.stem for path in annotations.glob("*.png") if not is_hidden(path.name)}
    if lonely := sorted(twins.keys() - annotated):
        path = images / twins[lonely[0]]
        raise PipelineError(f"{path}: no annotation {_annotation_of(path.name, annotations)}{_more(lonely)}")
    if lonely := sorted(annotated - twins.keys()):
        raise PipelineError(f"{annotations / lonely[0]}.png: no image of this name in {images}{_more(lonely)}")


def _more(names: list[str]) -> str:
    return f", nor for {len(names) - 1} more" if len(names) > 1 else ""


def _read_pixels(path: Path, read: Callable[[Path], bytes]) -> NDArray[np.uint8]:
    with _opened(path, read) as image:
        return np.array(_loaded(image, path, to_rgb))


def _read_labels(path: Path, read: Callable[[Path], bytes]) -> NDArray[np.uint8]:
    with _opened(path, read) as image:
        if image.mode not in _LABEL_MODES:
            raise PipelineError(
                f"{path}: pixels of mode {image.mode}, expected one channel of 8 bits; the full ADE20K's colour masks "
                "have to be converted to those of the scene parsing benchmark"
            )
        return np.array(_loaded(image, path, Image.Image.copy))


def _opened(path: Path, read: Callable[[Path], bytes]) -> Image.Image:
    try:
        return open_image(BytesIO(read(path)), path.name)
    except (OSError, Image.DecompressionBombError) as error:
        raise PipelineError(f"{path}: cannot be read ({error}); restore the file") from None


def _loaded(image: Image.Image, path: Path, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    try:
        return convert(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise PipelineError(f"{path}: damaged ({error}); restore the file") from None
