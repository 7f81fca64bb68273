"""Images with their labels, augmented in worker processes: what evaluation trains and measures on.

    transform (of each image, 8-bit pixels) -> mix (of a step's images) -> normalise -> erase (of each image)

The last two are the learner's, on the device: pixels get there as 8 bits, with what replaces those that are erased. In
the order of timm's prefetching loader, with which the released MaPeT was fine-tuned: what is erased is not mixed
into other images. timm's transforms draw from global generators; these are seeded for the image, or for mixing by the
step, and put back, so a resumed run, or one with other workers or processes, sees the same pixels.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.formats import open_image
from pipeline.data.image_counts import spread_count
from pipeline.data.image_feed import ImageFeed
from pipeline.data.rgb import to_rgb
from pipeline.data.row_feed import is_training
from pipeline.data.share import Share
from pipeline.data.sources.base import ImageReader, ImageSource
from pipeline.engine.batches import Batch
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from storage.image_index import ImageEntry, ImageIndex
from storage.square_store import SquareStore

Transform = Callable[[Image.Image], Tensor]
"""Of an image; gives uint8 [3, side, side]."""

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of pixels uint8 [B, 3, side, side] and labels [B] to pixels uint8 and shares of classes [B, K]. What becomes of an
image depends on its neighbour in a pair (0 and 1, 2 and 3, ...) and on the generators alone."""

Erase = Callable[[Tensor], Tensor]
"""Of a normalised image float32 [3, side, side], in place: replaces pixels, a third at most, whatever they were."""


@dataclass(frozen=True)
class LabelledSplits:
    """Rows with labels, ascending, and how many classes there are."""

    train: np.ndarray
    val: np.ndarray
    classes: int


def choose_labelled(
    index: ImageIndex, *, train: str, val: str, fraction: float = 1.0, usable: np.ndarray | None = None
) -> LabelledSplits:
    """Return the labelled rows of two splits.

    Args:
        fraction: of the training images of each class, evenly spread over its rows; 1 takes all.
        usable: bool [images], rows that could be decoded before; all when not given.

    Raises:
        PipelineError: a split has no labelled image.
    """
    good = index.labels >= 0 if usable is None else usable & (index.labels >= 0)
    rows = {name: (found := index.rows_of_split(name))[good[found]] for name in (train, val)}
    for name, found in rows.items():
        if not len(found):
            wanted = " and in ".join(dict.fromkeys((train, val)))
            there = ", ".join(f"{count:,} in {split}" for split, count in index.splits.items())
            raise PipelineError(
                f"split {name!r} has no labelled images (images: {there}), and evaluation needs some in {wanted}; "
                f"put them into class folders, such as {name}/cat/1.jpg, or choose evaluate.protocols that need no "
                "labels of these images: segmentation, transfer"
            )
    chosen = _spread(rows[train], index.labels[rows[train]], fraction)
    classes = max(len(index.classes), int(index.labels.max()) + 1)
    return LabelledSplits(chosen, rows[val], classes)


def _spread(rows: np.ndarray, labels: np.ndarray, fraction: float) -> np.ndarray:
    if fraction >= 1:
        return rows
    kept = []
    for label in np.unique(labels):
        own = rows[labels == label]
        kept.append(own[np.linspace(0, len(own) - 1, spread_count(len(own), fraction)).round().astype(int)])
    return np.sort(np.concatenate(kept))


class LabelledImages(ImageFeed):
    """Batches of `(pixels uint8 [B, 3, side, side], targets, seeds int64 [B])`.

    Targets are labels int64 [B], or with `mix` (in training) whatever it makes of pixels and labels, float32 [B, K].
    With `erase` (in training) also `(erased bool [B, side, side], noise float32 [n])`: which pixels are replaced once
    they are normalised, and by what, image after image and colour after colour.
    """

    def __init__(
        self,
        index: ImageIndex,
        source: ImageSource,
        rows: LabelledSplits,
        *,
        train_transform: Transform,
        val_transform: Transform,
        mix: Mix | None = None,
        erase: Erase | None = None,
        image_size: int,
        seed: int,
        settings: Settings,
        repeats: int = 1,
        squares: SquareStore | None = None,
    ) -> None:
        """Take `mix`, `erase` and `repeats` (how often a step takes each image) for training alone, and for the rest
        `squares`, of what `val_transform` makes; `image_size` is their side."""
        super().__init__(
            index,
            source,
            train_rows=rows.train,
            val_rows=rows.val,
            seed=seed,
            settings=settings,
            repeats=repeats,
            squares=squares,
        )
        self._train_transform, self._val_transform = train_transform, val_transform
        self._mix, self._erase = mix, erase
        self._side, self._classes = image_size, rows.classes

    @property
    def image_bytes(self) -> int:
        place = self._side**2
        mixed, erased = 4 * self._classes * bool(self._mix), (1 + 4) * place * bool(self._erase)
        return 3 * place + mixed + erased

    def load_share(self, share: Share) -> Batch:
        training = is_training(share)
        batch = self._mixed(share, self._mix) if training and self._mix else super().load_share(share)
        if not (training and self._erase):
            return batch
        seeds = batch.inputs[2]
        erased, noise = zip(*(self._erasure(self._erase, seed) for seed in seeds.tolist()), strict=True)
        lengths = np.array([len(values) for values in noise])
        return replace(batch, inputs=(*batch.inputs, torch.stack(erased), torch.cat(noise)), lengths=lengths)

    def _erasure(self, erase: Erase, seed: int) -> tuple[Tensor, Tensor]:
        """Return which pixels of an image are erased, bool [side, side], and their new values, colour after colour."""
        image = torch.full((3, self._side, self._side), torch.nan)
        with seeded(~seed):  # draws of its own, not those of the transform again
            erase(image)
        erased = ~image[0].isnan()
        return erased, image[:, erased].flatten()

    def targets(self, rows: np.ndarray) -> tuple[Tensor, ...]:
        return (torch.from_numpy(self.index.labels[rows].astype(np.int64)),)

    def decode(self, entries: Iterable[ImageEntry], reader: ImageReader, seeds: Tensor, *, training: bool) -> Tensor:
        transform = self._train_transform if training else self._val_transform
        images = []
        for entry, seed in zip(entries, seeds.tolist(), strict=True):
            with seeded(seed):
                images.append(transform(open_rgb(reader, entry)))
        return torch.stack(images)

    def _mixed(self, share: Share, mix: Mix) -> Batch:
        """Load a share and mix it by the step's own draw, with its pairs whole: the same in every process."""
        whole = share.of_whole_pairs()
        pixels, labels, seeds = super().load_share(whole).inputs
        with seeded(int(self.seeds(replace(share, first=0, end=1)))):
            pixels, targets = mix(pixels, labels)
        own = slice(share.first - whole.first, share.first - whole.first + len(share.rows))
        return Batch(share.rows, (pixels[own], targets[own], seeds[own]))


def with_noise(images: Tensor, erased: Tensor, noise: Tensor) -> Tensor:
    """Return normalised images [B, 3, side, side], in which noise replaces the pixels that `LabelledImages` erased."""
    return images.masked_scatter(erased[:, None].expand_as(images), noise.to(images.dtype))


def open_rgb(reader: ImageReader, entry: ImageEntry) -> Image.Image:
    """Return the decoded image. Raises PipelineError naming it when it cannot be had."""
    try:
        with open_image(BytesIO(reader.read(entry)), entry.key or entry.container) as image:
            return to_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PipelineError(
            f"{entry.name}: cannot be decoded ({' '.join(str(error).split())[:200]}); mend or remove it, and index the "
            "data set again"
        ) from None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global generators inside, and leave them as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
