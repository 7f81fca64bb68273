"""How many images a data set has, split by split and class by class: what can be said of a run before it starts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from pipeline.data.demo_images import CLASS_FOLDERS, SPLITS, DemoSources, image_names
from pipeline.data.demo_options import DemoImagesOptions
from storage.image_index import ImageIndex


@dataclass(frozen=True)
class ImageCounts:
    """Of one data set.

    Attributes:
        images: per split, labelled or not.
        of_classes: per split the labelled images of each class.
        classes: their names, where there are any.
    """

    images: Mapping[str, int]
    of_classes: Mapping[str, Sequence[int]]
    classes: tuple[str, ...]

    @classmethod
    def of_index(cls, index: ImageIndex) -> Self:
        count = max(len(index.classes), int(index.labels.max(initial=-1)) + 1)
        labels = {split: index.labels[index.rows_of_split(split)] for split in index.splits}
        counted = {name: np.bincount(found[found >= 0], minlength=count).tolist() for name, found in labels.items()}
        return cls(index.splits, counted, index.classes)

    @classmethod
    def of_demo(cls, options: DemoImagesOptions) -> Self:
        """Count the demo's pictures, which need not be drawn for it."""
        counted = Counter(tuple(name.split("/")[:2]) for name in image_names(DemoSources.load(), options))
        of_classes = {split: [counted[split, name] for name in CLASS_FOLDERS] for split in SPLITS}
        return cls({split: sum(found) for split, found in of_classes.items()}, of_classes, CLASS_FOLDERS)

    @property
    def total(self) -> int:
        return sum(self.images.values())

    @property
    def class_count(self) -> int:
        return max((len(found) for found in self.of_classes.values()), default=0)

    def labelled(self, split: str, *, fraction: float = 1.0) -> int:
        """Return how many labelled images of a split are used, `fraction` of each class."""
        return sum(spread_count(count, fraction) for count in self.of_classes.get(split, ()))

    @property
    def words(self) -> str:
        return ", ".join(f"{split} ({count:,})" for split, count in self.images.items()) or "no images"


def spread_count(images: int, fraction: float) -> int:
    """Return how many of a class's images `fraction` takes: at least one, if there is one."""
    return min(images, max(1, round(fraction * images)))
