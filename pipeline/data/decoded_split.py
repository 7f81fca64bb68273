"""All images of the demo at once."""

import numpy as np
import torch

from models.encoders.preprocessing import Preprocessing
from pipeline.data.decode import read_and_decode
from pipeline.data.sources.base import ImageSource
from storage.image_index import ImageIndex


def load_split(index: ImageIndex, source: ImageSource, split: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images of a split, uint8 [n, 3, side, side], and their labels [n]: 64 MB for the demo, so at once."""
    rows = index.rows_of_split(split)
    reader = source.reader()
    wanted = Preprocessing(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    decoded = (
        read_and_decode(reader, entry, wanted, preset="exact", max_pixels=1 << 20).pixels
        for entry in index.entries(rows)
    )
    pixels = np.stack([image for image in decoded if image is not None])
    assert len(pixels) == len(rows), "the demo's own pictures are all readable"
    return torch.from_numpy(pixels), torch.from_numpy(index.labels[rows].astype(np.int64))
