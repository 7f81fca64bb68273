"""What disks, file servers and people do to files."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path

from storage.artifact import Artifact


def flip(path: Path, drawn: random.Random) -> None:
    """Flip one bit, anywhere; an empty file gets a byte."""
    data = bytearray(path.read_bytes() or b"\0")
    data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
    path.write_bytes(data)


def cut_short(path: Path, drawn: random.Random) -> None:
    """Cut it; an empty file, which cannot be shorter, goes."""
    if data := path.read_bytes():
        path.write_bytes(data[: drawn.randrange(len(data))])
    else:
        path.unlink()


def delete(path: Path, drawn: random.Random | None = None) -> None:
    path.unlink()


DAMAGES: Mapping[str, Callable[[Path, random.Random], None]] = {
    "bits flipped": flip,
    "files cut short": cut_short,
    "files deleted": delete,
}


def files_of(artifact: Artifact) -> list[Path]:
    """Return the content, in the order of the names."""
    return [artifact.path / name for name in sorted(artifact.files)]
