"""Images with label maps for a trainer, cut and distorted in worker processes; and whole ones, to be judged."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.row_feed import RowFeed
from pipeline.data.segmentation_images import SegmentationImages, SegmentedImage
from pipeline.data.segmentation_options import SegmentationTransformOptions
from pipeline.data.segmentation_transforms import SegmentationSample, central_sample, evaluation_pixels, training_sample
from pipeline.engine.batches import Batch, load_in_workers
from pipeline.engine.settings import Settings
from pipeline.engine.shared_memory import loading_ahead


class SegmentationFeed(RowFeed):
    """Batches of `(pixels uint8 [B, 3, side, side], labels uint8 [B, side, side], seeds int64 [B], sizes int64 [B,
    2])`: height and width of what is image, and no padding at the right and below.

    Rows count through both splits: training images first, then validation images. Of a validation image the trainer
    sees the square in the middle.
    """

    def __init__(
        self,
        train: SegmentationImages,
        val: SegmentationImages,
        transforms: SegmentationTransformOptions,
        *,
        read: Callable[[Path], bytes] = Path.read_bytes,
        crop: int,
        seed: int,
        settings: Settings,
    ) -> None:
        """Take `read`, which gives the bytes of a file, and `crop`, the side of the squares in pixels."""
        rows = np.arange(len(train) + len(val))
        super().__init__(train_rows=rows[: len(train)], val_rows=rows[len(train) :], seed=seed, settings=settings)
        self._train, self._val, self._read_file, self._transforms, self._crop = train, val, read, transforms, crop

    def load_rows(self, rows: np.ndarray, seeds: Tensor, *, training: bool) -> tuple[Tensor, ...]:
        samples = [
            self._sample(self._read(row), seed, training=training)
            for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True)
        ]
        sizes = torch.tensor([(one.height, one.width) for one in samples])
        return torch.stack([one.pixels for one in samples]), torch.stack([one.labels for one in samples]), seeds, sizes

    @property
    def image_bytes(self) -> int:
        return 4 * self._crop**2

    def whole_images(self, rows: np.ndarray) -> Iterator[Batch]:
        """Yield `(pixels uint8 [1, 3, H, W] scaled for the network, labels uint8 [1, h, w] at their own size)` for each
        row."""
        ahead = loading_ahead(4 * self._transforms.short_side * self._transforms.long_side, self._settings)
        return load_in_workers(self._whole, rows.tolist(), self._settings, ahead, most=len(rows))

    def _whole(self, row: int) -> Batch:
        image = self._read(row)
        pixels = evaluation_pixels(image, self._transforms)
        return Batch(np.array([row]), (pixels[None], torch.from_numpy(image.labels)[None]))

    def _read(self, row: int) -> SegmentedImage:
        trained = len(self._train)
        split, place = (self._train, row) if row < trained else (self._val, row - trained)
        return split.read(place, self._read_file)

    def _sample(self, image: SegmentedImage, seed: int, *, training: bool) -> SegmentationSample:
        if not training:
            return central_sample(image, self._transforms, crop=self._crop)
        rng = np.random.default_rng(seed % 2**64)  # seeds are any int64
        return training_sample(image, self._transforms, crop=self._crop, rng=rng)
