"""Canonical names: the same image is called the same whatever the layout, so that row, id and token agree.

A name is the posix path of the image below the source's root, in Unicode NFC, prefixed by its split when the split is
known. Splits have one spelling: `validation/a/b.jpg`, and `a/b.jpg` in `validation-00000.parquet`, are both
`val/a/b.jpg`.
"""

import re
from pathlib import PurePosixPath
from unicodedata import normalize

_ALIASES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_of(word: str) -> str:
    """The split that a directory is named after, "" when it is none."""
    return _ALIASES.get(word.casefold(), "")


def split_of_container(container: str) -> str:
    """The split that a Parquet or tar file's name tells (`imagenet1k-train-0000.tar`), else its nearest directory's.

    A file name that tells two splits tells none.
    """
    path = PurePosixPath(container)
    told = {split_of(word) for word in re.split(r"[^A-Za-z]+", path.name)} - {""}
    if len(told) == 1:
        return told.pop()
    return next((split_of(part) for part in reversed(path.parts[:-1]) if split_of(part)), "")


def canonical_name(path: str, *, told: str = "") -> tuple[str, str]:
    """Name and split of the image at `path`.

    The split is what the container tells (`told`), else what the path's first component tells, else "".
    """
    clean = "/".join(part for part in normalize("NFC", path).split("/") if part not in ("", "."))
    first, _, below = clean.partition("/")
    in_path = split_of(first) if below else ""
    split = told or in_path
    if split and split == in_path:
        return f"{split}/{below}", split
    return (f"{split}/{clean}" if split else clean), split
