"""The demo's images with a class for every pixel: digits where their alpha is more than a half, background elsewhere.

Written in ADE20K's layout (`segmentation_images`): label 1 is the background, 2 to 11 are the digits 0 to 9. The images
are the demo's own, the first drawing of each digit.
"""

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.demo_images import CLASS_FOLDERS, DemoSources, image_names, render_by_name
from pipeline.data.demo_options import DemoImagesOptions, DemoSegmentationOptions
from pipeline.data.segmentation_images import FOLDERS
from pipeline.engine.errors import PipelineError

CLASSES = 1 + len(CLASS_FOLDERS)
BACKGROUND = 1
Split = Literal["train", "val"]
_FIRST_RENDERING = "_0.png"


def write_demo_segmentation(
    folder: Path, options: DemoSegmentationOptions, drawing: DemoImagesOptions
) -> Mapping[str, int]:
    """Write `images/` and `annotations/` into `folder`; returns how many images each split has.

    Raises:
        PipelineError: the drawing has fewer digits than that.
    """
    sources = DemoSources.load()
    counts: dict[Split, int] = {"train": options.train_images, "val": options.val_images}
    for split, count in counts.items():
        for name in chosen_names(sources, drawing, split, count):
            drawn = render_by_name(sources, name, drawing)
            labels = label_map(drawn.alpha, CLASS_FOLDERS.index(PurePosixPath(name).parts[1]))
            for kind, pixels in (("images", drawn.pixels), ("annotations", labels)):
                path = folder / kind / FOLDERS[split] / PurePosixPath(name).name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, format="PNG", compress_level=1)
    return MappingProxyType({str(split): count for split, count in counts.items()})


def chosen_names(sources: DemoSources, drawing: DemoImagesOptions, split: Split, count: int) -> list[str]:
    """Return names of the demo's images, one digit of each class in turn.

    Raises:
        PipelineError: fewer are drawn.
    """
    drawn = [name for name in image_names(sources, drawing) if name.endswith(_FIRST_RENDERING)]
    classes = [[name for name in drawn if name.startswith(f"{split}/{label}/")] for label in CLASS_FOLDERS]
    names = [name for turn in zip_longest(*classes) for name in turn if name is not None]
    if len(names) < count:
        raise PipelineError(f"{count} {split} images with label maps, but {len(names)} digits are drawn; ask for less")
    return names[:count]


def label_map(alpha: NDArray[np.float32], digit: int) -> NDArray[np.uint8]:
    """Return the labels of a drawing, uint8 [side, side], from its alpha: the digit's where that is more than a half,
    else the background's."""
    return np.where(alpha > 0.5, BACKGROUND + 1 + digit, BACKGROUND).astype(np.uint8)
