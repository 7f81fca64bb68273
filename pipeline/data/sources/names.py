"""Canonical names: the same image is called the same whatever the layout, so that row, id and token agree.

A name is the posix path of the image below the source's root, in Unicode NFC, prefixed by its split when the split is
known. Splits have one spelling: `validation/a/b.jpg`, and `a/b.jpg` in `validation-00000.parquet`, are both
`val/a/b.jpg`.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from unicodedata import normalize

_ALIASES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Also at `train2017` and `trainA`.
_BETWEEN_WORDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])")


def split_of(word: str) -> str:
    """Return the split that a directory is named after, "" when it is none."""
    return _ALIASES.get(word.casefold(), "")


def split_in(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the one split that a decorated name tells, and its other words: `imagenet_val` -> `val`, (`imagenet`,).

    ("", ()) when it tells none, or two.
    """
    words = [word for word in _BETWEEN_WORDS.split(name) if word]
    told = {split_of(word) for word in words} - {""}
    if len(told) != 1:
        return "", ()
    return told.pop(), tuple(word.casefold() for word in words if not split_of(word))


def split_of_container(container: str) -> str:
    """Return the split that a Parquet or tar file's name tells (`imagenet1k-train-0000.tar`), else its nearest
    directory's.

    A name that tells two splits tells none.
    """
    path = PurePosixPath(container)
    return next((split for part in reversed(path.parts) if (split := _told_by(part))), "")


def _told_by(name: str) -> str:
    told = {split_of(word) for word in re.split(r"[^A-Za-z]+", name)} - {""}
    return told.pop() if len(told) == 1 else ""


def clean_path(path: str) -> str:
    """Return `path` in Unicode NFC, without empty parts and dots."""
    return "/".join(part for part in normalize("NFC", path).split("/") if part not in ("", "."))


def canonical_name(path: str, split: str) -> str:
    """Return the name of the image at `path`, whose container tells the split; the path may tell the same once more."""
    first, _, below = path.partition("/")
    return f"{split}/{below}" if below and split_of(first) == split else f"{split}/{path}"


def is_hidden(path: str) -> bool:
    """Return whether a file, or a directory that it is in, is hidden: never data. macOS leaves `._1.jpg` and
    `__MACOSX/`."""
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in path.split("/"))


def in_order_of_number(names: Sequence[str]) -> list[str]:
    """Sort class names by their numbers, if all are whole numbers; others stay as they are."""
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else list(names)
