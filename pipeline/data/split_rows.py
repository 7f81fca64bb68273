"""The rows of an index that are trained on and looked at in between, split by split."""

import numpy as np

from pipeline.engine.errors import PipelineError
from storage.image_index import ImageIndex


def rows_of_splits(index: ImageIndex, *, train: str, val: str, option: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of training and validation. Raises PipelineError, naming `option`, if there are no training
    images."""
    rows, others = (index.rows_of_split(name) for name in (train, val))
    if not len(rows):
        splits = ", ".join(f"{name} ({count:,})" for name, count in index.splits.items())
        raise PipelineError(f"{option}={train!r} has no images; the index has {splits}")
    return rows, others
