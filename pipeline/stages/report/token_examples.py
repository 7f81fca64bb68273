"""Which patches of a token are shown: of images of its majority class (matches), then of others (mismatches).

The paper's Figs. 3 and 5, and Fig. 4, for a vocabulary of our own (Baraldi et al., "Learning to Mask and Permute Visual
Tokens for Vision Transformer Pre-Training"). Nothing is drawn by lot: the images are evenly spread over the rows of the
image index, which are sorted by name, and no image is shown twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.stages.report.token_statistics import CountedImages, TokenStatistics, blocks


@dataclass(frozen=True)
class Occurrence:
    """One patch of one image. `matches`: the image is of its token's majority class; None where it has no label."""

    row: int
    patch: int
    matches: bool | None


@dataclass(frozen=True)
class TokenExamples:
    """Some occurrences of a token: its matches, then its mismatches, each in ascending rows."""

    token: int
    occurrences: tuple[Occurrence, ...]


def choose_examples(
    chosen: Sequence[int],
    tokens: np.ndarray,
    images: CountedImages,
    *,
    labels: np.ndarray,
    statistics: TokenStatistics,
    pictures: int,
) -> tuple[TokenExamples, ...]:
    """Choose for each token of `chosen` at most `pictures` matches and as many mismatches.

    Args:
        tokens: uint16 [all images, patches].
        labels: int32 [all images].
    """
    holders: list[list[np.ndarray]] = [[] for _ in chosen]
    for rows, block in blocks(tokens, images):
        for found, token in zip(holders, chosen, strict=True):
            found.append(rows[(block == token).any(axis=1)])
    examples = []
    for token, found in zip(chosen, holders, strict=True):
        rows = np.concatenate(found) if found else images.rows
        if images.labelled:
            matches = labels[rows] == statistics.majority[token]
            occurrences = _occurrences(tokens, token, evenly_spread(rows[matches], pictures), True)
            occurrences += _occurrences(tokens, token, evenly_spread(rows[~matches], pictures), False)
        else:
            occurrences = _occurrences(tokens, token, evenly_spread(rows, pictures), None)
        examples.append(TokenExamples(token, tuple(occurrences)))
    return tuple(examples)


def evenly_spread(values: np.ndarray, count: int) -> np.ndarray:
    """Return the middles of `count` equal parts of `values` [n]; all of them when there are no more."""
    count = min(count, len(values))
    return values[(2 * np.arange(count) + 1) * len(values) // max(1, 2 * count)]


def _occurrences(tokens: np.ndarray, token: int, rows: np.ndarray, matches: bool | None) -> list[Occurrence]:
    """Return the middle one, in raster order, of the patches with the token in each image."""
    found = [(int(row), np.flatnonzero(tokens[row] == token)) for row in rows]
    return [Occurrence(row, int(patches[len(patches) // 2]), matches) for row, patches in found]
