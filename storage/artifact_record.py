"""The record of an artifact, `artifact.json`: what it was made from, the checksum of every file, notes.

It is written last and carries a checksum of itself: an artifact exists where a readable record does.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import ArtifactDamaged, ArtifactMissing
from storage.files import canonical_json, sha256_text

RECORD = "artifact.json"
_FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """What defines a result: nothing of the machine (device, workers, paths) belongs here."""

    stage: str
    version: int
    options: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)  # name -> digest

    @property
    def definition(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "version": self.version,
            "options": dict(self.options),
            "inputs": dict(self.inputs),
        }

    @property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the definition's canonical JSON."""
        return sha256_text(canonical_json(self.definition))[:16]


@dataclass(frozen=True)
class Artifact:
    """A published artifact, as its record describes it."""

    path: Path
    stage: str
    fingerprint: str
    digest: str
    recipe: Recipe
    files: Mapping[str, Mapping[str, Any]]
    summary: Mapping[str, Any]  # a few numbers about the content
    notes: Mapping[str, Any]  # how it was made: seconds, throughput, hardware, tracking run

    @property
    def bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.files.values())


def read_artifact(path: Path) -> Artifact:
    """Read an artifact's record; the content is not looked at (`damage` does that).

    Raises:
        ArtifactMissing: there is no record at `path`.
        ArtifactDamaged: the record is not the text that was written.
    """
    record_path = path / RECORD
    if not record_path.is_file():
        what = "an unfinished artifact" if path.suffix == ".partial" else "no artifact"
        raise ArtifactMissing(f"{path}: {what}, there is no {RECORD}; run the stage that makes it")
    artifact = parse_record(record_path.read_bytes(), path)
    if artifact is None:
        raise ArtifactDamaged(f"{record_path}: the record was changed after it was written; the stage will rebuild it")
    return artifact


def parse_record(data: bytes, path: Path) -> Artifact | None:
    """Read a record as the artifact at `path`; None when the bytes are not those that were written."""
    text = data.decode(errors="replace")
    try:
        record = json.loads(text)
        del record["checksum"]  # rendering computes it again: a wrong one makes another text
        if _render(record) == text:
            fields = ("stage", "fingerprint", "digest", "files", "summary", "notes")
            return Artifact(path, recipe=Recipe(**record["recipe"]), **{name: record[name] for name in fields})
    except (ValueError, KeyError, TypeError):
        pass
    return None


def render_record(fields: Mapping[str, Any]) -> str:
    """Write the record of an artifact: `fields` are all those of `Artifact` but its path."""
    record = {"format": _FORMAT, **fields}
    return _render(json.loads(canonical_json(record)))  # as a reader will see it: lists for tuples, text keys


def _render(record: dict[str, Any]) -> str:
    """Write equal records as equal text, with a checksum of the rest in it."""
    checksum = sha256_text(canonical_json(record))
    return json.dumps({**record, "checksum": checksum}, indent=1, sort_keys=True) + "\n"
