"""The token store of an image index, and which of its rows are trained on."""

import logging
from dataclasses import dataclass

import numpy as np

from pipeline.engine.errors import PipelineError
from storage.artifact import Artifact
from storage.errors import StoreMismatch
from storage.image_index import ImageIndex, ImageStatus
from storage.token_store import TokenStore

logger = logging.getLogger("mapet.stages")


def open_tokens(tokens: Artifact, images: Artifact) -> TokenStore:
    """Return the token store of an image index.

    Raises:
        StoreMismatch: it was made for other images.
    """
    store = TokenStore(tokens.path)
    made_for = str(store.attributes.get("image_index", ""))
    if made_for != images.digest:
        raise StoreMismatch(
            f"{tokens.path}: tokens of image index {made_for[:12]}, the images given have index {images.digest[:12]} "
            f"({images.path}); tokens belong to rows of their own index: run `mapet kclip-build` for these images, or "
            "name the images that the tokens were made from"
        )
    return store


@dataclass(frozen=True)
class Splits:
    """Rows that have tokens, ascending; `invalid` counts those of both splits that have none."""

    train: np.ndarray
    val: np.ndarray
    invalid: int


def choose_rows(index: ImageIndex, store: TokenStore, *, train: str, val: str) -> Splits:
    """Return the rows of the two splits whose images could be decoded when they were tokenized.

    Raises:
        PipelineError: none is left to train on.
    """
    chosen = {name: index.rows_of_split(name) for name in (train, val)}
    valid = {name: rows[store.status[rows] == ImageStatus.VALID] for name, rows in chosen.items()}
    invalid = sum(len(rows) for rows in chosen.values()) - sum(len(rows) for rows in valid.values())
    if not len(valid[train]):
        splits = ", ".join(f"{name} ({count:,})" for name, count in index.splits.items())
        raise PipelineError(f"pretrain.train_split={train!r} has no images with tokens; the index has {splits}")
    if not len(valid[val]):
        logger.info("split %r has no images: the loss is measured on training images only", val)
    return Splits(valid[train], valid[val], invalid)
