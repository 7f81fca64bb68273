"""Tokens on disk: Zarr v3, `tokens` uint16 [images, patches] and `status` uint8 [images], in image-index order.

Chosen for robustness (any layout writes ImageNet in about a CPU-second):
- crc32c on every chunk: without it, flipped bits pass unnoticed.
- fill value 65535 (no token id) and empty chunks written: a missing file would otherwise read as token 0.
- one writer per file, a shard in Zarr's words: two that share one lose rows without an error, so the store is assembled
  from finished parts.
Training never indexes Zarr: it reads `decoded_tokens`, a memory-mapped copy made once per node.
"""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from storage.errors import StoreInvalid
from storage.image_index import ImageStatus
from storage.recorded_files import RecordedFiles

STORE = "tokens.zarr"
NO_TOKEN = 65_535
CHUNK_ROWS = 4_096
SHARD_ROWS = 16_384
FORMAT = "mapet-tokens/1"


def write_token_store(
    folder: Path,
    parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    images: int,
    patches: int,
    attributes: Mapping[str, Any],
) -> None:
    """Assemble the store from parts `(rows [n], tokens uint16 [n, patches], status uint8 [n])`, in any order.

    Raises:
        StoreInvalid: the parts leave a row out or name one twice.
    """
    scratch = folder / "scratch.tmp"  # on disk, so that memory does not grow with the number of images
    tokens = np.memmap(scratch, np.uint16, "w+", shape=(images, patches))
    status = np.zeros(images, np.uint8)
    seen = np.zeros(images, np.uint8)
    for rows, part_tokens, part_status in parts:
        tokens[rows], status[rows] = part_tokens, part_status
        np.add.at(seen, rows, 1)
    if (seen != 1).any():
        row = int(np.flatnonzero(seen != 1)[0])
        raise StoreInvalid(f"{folder}: row {row} was written {seen[row]} times, expected once; run the stage again")
    _write_zarr(folder / STORE, tokens, status, {"format": FORMAT, **attributes})
    del tokens
    scratch.unlink()


def _write_zarr(path: Path, tokens: np.ndarray, status: np.ndarray, attributes: Mapping[str, Any]) -> None:
    shutil.rmtree(path, ignore_errors=True)  # a killed assembly's beginnings
    group = zarr.create_group(path, zarr_format=3, attributes=dict(attributes))
    patches = tokens.shape[1]
    for name, array, chunks, shards, fill in (
        ("tokens", tokens, (CHUNK_ROWS, patches), (SHARD_ROWS, patches), NO_TOKEN),
        ("status", status, (CHUNK_ROWS,), (SHARD_ROWS,), 255),
    ):
        stored = group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=chunks,
            shards=shards,
            fill_value=fill,
            filters=None,
            compressors=[Crc32cCodec()],
            serializer=BytesCodec(),
            dimension_names=("image", "patch")[: array.ndim],
            config={"write_empty_chunks": True},
        )
        for start in range(0, len(array), SHARD_ROWS):
            stored[start : start + SHARD_ROWS] = array[start : start + SHARD_ROWS]


@dataclass(frozen=True)
class TokenStore:
    """A published token store. `path` is the artifact's folder."""

    path: Path

    @cached_property
    def _group(self) -> zarr.Group:
        try:
            group = zarr.open_group(self.path / STORE, mode="r")
        except (FileNotFoundError, ValueError) as error:
            raise StoreInvalid(f"{self.path}: expected a token store, found no {STORE}") from error
        if group.attrs.get("format") != FORMAT:
            raise StoreInvalid(f"{self.path}: expected format {FORMAT!r}, found {group.attrs.get('format')!r}")
        return group

    @property
    def attributes(self) -> dict[str, Any]:
        """What the tokens are: grid, vocabulary, digests of image index and codebook, encoder, preprocessing."""
        return self._group.attrs.asdict()

    @property
    def vocabulary(self) -> int:
        return int(self.attributes["vocabulary"])

    @cached_property
    def status(self) -> np.ndarray:
        """ImageStatus of every row, uint8 [images]."""
        return self._read("status")

    def __len__(self) -> int:
        return len(self.status)

    def load(self) -> np.ndarray:
        """Read all tokens, uint16 [images, patches], and check them.

        Raises:
            StoreInvalid: a valid image has an id outside the vocabulary, or an invalid one has tokens.
        """
        tokens = self._read("tokens")
        for start in range(0, len(tokens), SHARD_ROWS):  # by blocks: the comparisons would be larger than the tokens
            self._check(tokens[start : start + SHARD_ROWS], start)
        return tokens

    def _check(self, tokens: np.ndarray, first_row: int) -> None:
        valid = self.status[first_row : first_row + len(tokens)] == ImageStatus.VALID
        for rows, wrong, expected in (
            (valid, tokens >= self.vocabulary, f"ids below {self.vocabulary}"),
            (~valid, tokens != NO_TOKEN, f"{NO_TOKEN} (no token)"),
        ):
            if (bad := (wrong & rows[:, None]).any(axis=1)).any():
                row = int(np.flatnonzero(bad)[0])
                raise StoreInvalid(
                    f"{self.path}: row {first_row + row}: expected {expected}, found {tokens[row].tolist()}"
                )

    def _read(self, name: str) -> np.ndarray:
        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise StoreInvalid(f"{self.path / STORE / name}: expected a Zarr array, found a group")
        return np.asarray(array[:])

    def decoded(self, folder: Path, digest: str) -> np.ndarray:
        """Map all tokens read-only from a copy in `folder`, made once and named by the artifact's digest.

        One copy in the page cache serves all workers and ranks of a node: 79,000 rows/s instead of 282 through Zarr.
        """
        path = folder / f"{digest[:16]}.npy"
        recorded = RecordedFiles.beside(path)
        if not recorded.read():
            folder.mkdir(parents=True, exist_ok=True)
            with recorded.write(path.name) as (temporary,), temporary.open("wb") as file:
                np.save(file, self.load(), allow_pickle=False)
        return np.load(path, mmap_mode="r", allow_pickle=False)
