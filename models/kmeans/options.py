"""The choices of the codebook (configuration section `codebook`)."""

from typing import Literal

from pydantic import Field

from models.options import Options


class CodebookOptions(Options):
    """How patch features are clustered into a codebook."""

    vocabulary: int = Field(default=8192, ge=2, le=65_535)
    """Number of centroids K; 65535 itself is the token store's mark of an absent token."""
    iterations: int = Field(default=20, ge=1, le=10_000)
    """Lloyd iterations of each restart; in mode growing at most so many over all vectors."""
    seed: int = Field(default=1234, ge=0, le=2**31 - 1)
    """Draws the first centroids, the subset of vectors, and the donors of empty clusters."""
    mode: Literal["lloyd", "growing", "reference"] = "lloyd"
    """lloyd: by blocks, resumable, reproducible; growing: likewise, but begins on samples of 1/16, 1/8, 1/4 and 1/2 of
    the vectors, moves centroids further than to the mean, and ends when an iteration over all vectors gains less than
    0.2 %: about the inertia of 20 iterations for about half the comparisons, but another codebook than the
    paper's; reference: faiss.Kmeans as the official code calls it."""
    redo: int = Field(default=1, ge=1, le=1000)
    """Restarts from other first centroids; the lowest final inertia wins (the official code makes 5)."""
    max_points_per_centroid: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Cluster at most this many vectors per centroid; null takes all (the official code's FAISS keeps 512)."""
