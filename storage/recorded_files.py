"""Files that count because a record tells of them: JSON with the SHA-256 of each, written after them.

Whatever cuts a writer off, a reader finds all of it or nothing: every file and the record take their names whole, and
until the record has its own it is absent, or tells of other bytes.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from storage.files import checksums, on_all_cores, replace_file, sha256_file, write_json

Files = Mapping[str, Mapping[str, Any]]
"""`{relative path: {"bytes": ..., "sha256": ...}}`, as `storage.files.checksums` makes it; bytes may be left out."""


@dataclass(frozen=True)
class RecordedFiles:
    """Files below `folder`, of which the record says `{"files": {relative path: SHA-256}, ...}`.

    Attributes:
        only: the file's name if there is but one; its record says `{"bytes": ..., "sha256": ..., ...}`.
    """

    folder: Path
    record: Path
    only: str = ""

    @classmethod
    def beside(cls, path: Path) -> Self:
        """Describe the single file at `path`, whose record has the same name but for the ending `.json`."""
        return cls(path.parent, path.with_suffix(".json"), path.name)

    @contextmanager
    def write(self, *names: str, **fields: Any) -> Iterator[list[Path]]:
        """Yield where to write each file; when the block succeeds they take their names, and then the record its.

        What was there counts until then. Folders in `folder` are made, `folder` is not. `fields`: what the record says
        beside the checksums.
        """
        paths = [self.folder / name for name in names]
        for path in (*paths, self.record):
            path.parent.mkdir(exist_ok=True)
        with ExitStack() as files:
            yield [files.enter_context(replace_file(path)) for path in paths]
        found = checksums(self.folder, names)
        told = found[self.only] if self.only else {"files": {name: entry["sha256"] for name, entry in found.items()}}
        write_json(self.record, {**told, **fields})

    def read(self) -> dict[str, Any] | None:
        """Read the record; None where it is absent or damaged, or a file is missing or not the one that it tells of."""
        try:
            record: dict[str, Any] = json.loads(self.record.read_text())
            several = {} if self.only else record["files"]
            files = {name: {"sha256": digest} for name, digest in several.items()} or {self.only: record}
            return None if differences(self.folder, files) else record
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def differences(folder: Path, files: Files) -> dict[str, str]:
    """Say how files below `folder` differ from their checksums, by name; hashing runs on all cores."""
    found = on_all_cores(lambda name: difference(folder / name, files[name]), list(files))
    return {name: words for name, words in zip(files, found, strict=True) if words}


def difference(path: Path, expected: Mapping[str, Any]) -> str:
    """Say how a file differs from its checksum, "" where it does not. Only one of the right size is read."""
    if not path.is_file():
        return "missing"
    if (size := path.stat().st_size) != expected.get("bytes", size):
        return f"expected {expected['bytes']} bytes, found {size}"
    return "" if sha256_file(path) == expected["sha256"] else "the bytes changed (SHA-256 differs)"
