"""Shards: groups of images whose results are written together, so that a killed stage repeats at most one group.

    <folder>/<part>/00012.arrow    one file per part of the shard ("features", "images", ...): Arrow IPC, or as the
                                   part's format says
    <folder>/units/00012.json      written last: the shard is done, these are its files and their checksums

Parts are never shared or appended to: a killed writer leaves a temporary file, not half a shard that looks whole
(a Parquet or Arrow file cut short is unreadable, a preallocated array opens normally with zeros in it).
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from storage.errors import StoreInvalid
from storage.recorded_files import RecordedFiles

_RECORDS = "units"  # as folders of earlier versions have it
ROWS_PER_BATCH = 4096
_SUFFIXES = (".arrow", ".npy")


class PartFormat(Protocol):
    """How a part of a shard is written."""

    @property
    def suffix(self) -> str:
        """Of the names of its files."""

    def writer(self, path: Path) -> AbstractContextManager[Any]:
        """Return what has a method `write_batch`, and has written the file when the block ends."""


@dataclass(frozen=True)
class _ArrowFormat:
    schema: pa.Schema
    suffix: str = ".arrow"

    def writer(self, path: Path) -> "PartWriter":
        return PartWriter(path, self.schema)


@dataclass(frozen=True)
class ShardFolder:
    """The shards of one stage's work; `fingerprint` ties them to the recipe that made them."""

    folder: Path
    fingerprint: str

    def is_done(self, shard: int) -> bool:
        """Tell whether the shard was finished for this recipe and its files still have the recorded checksums."""
        record = self._recorded(shard).read() or {}  # absent, cut short or altered: done again
        return record.get("fingerprint") == self.fingerprint

    @contextmanager
    def write(self, shard: int, parts: Mapping[str, pa.Schema | PartFormat]) -> Iterator[Mapping[str, Any]]:
        """Yield one writer per part; when the block succeeds the files get their names, then the record. A part with a
        schema is an Arrow file.

        Two processes may write a shard at once, as when a cluster takes a worker for dead: each has files of its own
        until they are renamed, and the shard stays done once it is. `folder` is not made: a writer that comes after the
        artifact was published fails.
        """
        formats = {part: _ArrowFormat(how) if isinstance(how, pa.Schema) else how for part, how in parts.items()}
        names = (_name(part, shard, how.suffix) for part, how in formats.items())
        with (
            self._recorded(shard).write(*names, unit=shard, fingerprint=self.fingerprint) as paths,
            ExitStack() as writers,  # closed before the files are synced and renamed: closing writes the footer
        ):
            yield {
                part: writers.enter_context(how.writer(path))
                for path, (part, how) in zip(paths, formats.items(), strict=True)
            }

    def path(self, part: str, shard: int, suffix: str) -> Path:
        """Name the file of a part."""
        return self.folder / _name(part, shard, suffix)

    def read(self, part: str, shard: int) -> pa.Table:
        """Map one part, an Arrow file, into memory: nothing is copied until it is used."""
        return read_part(self.path(part, shard, _ArrowFormat.suffix))

    def remove(self, part: str) -> None:
        """Delete the files of a part, which were put together elsewhere, and the records of all shards with them."""
        for name in (part, _RECORDS):
            shutil.rmtree(self.folder / name)

    def _recorded(self, shard: int) -> RecordedFiles:
        return RecordedFiles(self.folder, self.folder / _RECORDS / f"{shard:05d}.json")


def _name(part: str, shard: int, suffix: str) -> str:
    return f"{part}/{shard:05d}{suffix}"


class PartWriter:
    """Writes an Arrow file whose bytes do not depend on how its rows were handed over.

    Rows go out in record batches of `ROWS_PER_BATCH`, so that the batch size of an encoder, a setting of the machine,
    leaves no trace in the digest of an artifact.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = pa.ipc.new_file(str(path), schema)
        self._waiting: list[pa.RecordBatch] = []

    def write_batch(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch)
        if sum(len(waiting) for waiting in self._waiting) >= ROWS_PER_BATCH:
            self._write(keep_rest=True)

    def _write(self, *, keep_rest: bool) -> None:
        batches = pa.Table.from_batches(self._waiting).combine_chunks().to_batches(max_chunksize=ROWS_PER_BATCH)
        self._waiting = [batches.pop()] if keep_rest and len(batches[-1]) < ROWS_PER_BATCH else []
        for batch in batches:
            self._file.write_batch(batch)

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
        if exception is None and self._waiting:
            self._write(keep_rest=False)
        self._file.close()


def read_part(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreInvalid(
            f"{path}: expected an Arrow file, found something else ({error}); run the stage again"
        ) from error


def part_paths(folder: Path, part: str) -> list[Path]:
    """List the files of one part, by shard number; those that are being written have another ending."""
    return sorted(path for path in (folder / part).glob("*") if path.suffix in _SUFFIXES)
