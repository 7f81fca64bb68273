"""What the uppermost directories of a data set are: splits, one directory around them, or classes.

Splits are called `train`, `val`, `test` and the like, or carry such a word with others: `train2017`, `imagenet_val`.
The latter may also be classes (`train_station`), so they are splits only where nothing else makes sense: the other
words are numbers or say nothing, or directories of two splits share them (`seg_train`, `seg_test`). What is left open
is asked (`images.top_folders`), never guessed.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from pipeline.data.source_options import TopFolders
from pipeline.data.sources.names import split_in, split_of
from pipeline.engine.errors import PipelineError

_SAYS_NOTHING = frozenset(
    ("data", "dataset", "full", "ilsvrc", "image", "imagenet", "images", "img", "imgs", "photos", "set", "split", "x")
)


class Place(NamedTuple):
    """Where an image is: its split ("" where none is told), its canonical name, and the path below the split."""

    split: str
    name: str
    inner: str


@dataclass(frozen=True)
class Layout:
    """How paths are read.

    Attributes:
        around: the directory that everything lies in, "" when there is none.
        splits: directory below it -> split.
        repeated: whether every split holds one more directory of its name (`train/train/`), which says nothing.
    """

    around: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)
    repeated: bool = False

    def place(self, path: str) -> Place:
        below = path.removeprefix(f"{self.around}/") if self.around else path
        first, _, inner = below.partition("/")
        split = self.splits.get(first, "") if inner else ""
        if not split:
            return Place("", below, below)
        if self.repeated:
            inner = inner.partition("/")[2]
        return Place(split, f"{split}/{first}/{inner}" if split in self._shared else f"{split}/{inner}", inner)

    def notes(self) -> list[str]:
        """Return sentences on what people may not expect."""
        notes = [f"everything lies in {self.around}/ and is read below it"] if self.around else []
        if odd := [top for top, split in self.splits.items() if split_of(top) != split]:
            read = ", ".join(f"{top}/ as {self.splits[top]}" for top in sorted(odd))
            notes.append(f"{read} (images.top_folders=classes takes such directories as classes)")
        return notes

    @cached_property
    def _shared(self) -> frozenset[str]:
        """The splits of several directories, whose names an image's has to tell."""
        named = Counter(self.splits.values())
        return frozenset(split for top, split in self.splits.items() if named[split] > 1 and split_of(top) != split)


def read_layout(directories: Collection[str], root: Path, choice: TopFolders) -> Layout:
    """Return how the image files in `directories`, from `root`, are to be read; "" is `root` itself.

    Raises:
        PipelineError: two readings make sense, and `choice` tells none.
    """
    if choice == "classes":
        return Layout()
    shared = os.path.commonpath(directories) if directories else ""
    around = shared.split("/") if shared else []
    for depth in range(len(around) + 1):
        below = {tuple(path.split("/")[depth:]) for path in directories}
        tops = {parts[0] for parts in below if parts and parts[0]}
        splits = _splits(tops, root.joinpath(*around[:depth]), choice)
        if not depth and not splits and choice != "splits":
            _refuse_telling_names(tops, root)
        if splits and (not depth or splits.keys() == tops or len(set(splits.values())) > 1):
            return Layout("/".join(around[:depth]), splits, _is_repeated(below, splits))
    if choice == "splits":
        raise PipelineError(f"{root}: images.top_folders=splits, but no directory there tells a split by its name")
    _refuse_splits_of_classes(directories, root)
    return Layout()


def _splits(tops: Collection[str], root: Path, choice: TopFolders) -> dict[str, str]:
    """Return the split of each directory that is one."""
    exact = {top: split for top in tops if (split := split_of(top))}
    telling = {top: told for top in tops if top not in exact and (told := split_in(top))[0]}
    sharing: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for split, others in telling.values():
        sharing[others].add(split)
    splits = exact | {
        top: split
        for top, (split, others) in telling.items()
        if choice == "splits" or len(sharing[others]) > 1 or all(w.isdigit() or w in _SAYS_NOTHING for w in others)
    }
    if choice != "splits":
        _refuse_one_split_twice(splits, root)
    return splits


def _refuse_one_split_twice(splits: Mapping[str, str], root: Path) -> None:
    counts = Counter(splits.values())
    for top in sorted(splits):
        if counts[splits[top]] > 1 and split_of(top) != splits[top]:
            same = " and ".join(f"{name}/" for name in sorted(splits) if splits[name] == splits[top])
            raise PipelineError(
                f"{root}: {same} all tell the split {splits[top]}; take them together with images.top_folders=splits, "
                "as classes with images.top_folders=classes, or move away the ones that are not meant"
            )


def _refuse_telling_names(tops: Collection[str], root: Path) -> None:
    """Refuse names such as `bullet_train`: beside classes they are classes, alone they may be either."""
    if tops and all(split_in(top)[0] for top in tops):
        named = ", ".join(f"{top}/" for top in sorted(tops)[:3])
        raise PipelineError(
            f"{root}: {named} may be splits (images.top_folders=splits) or classes (images.top_folders=classes); "
            "say which"
        )


def _refuse_splits_of_classes(directories: Collection[str], root: Path) -> None:
    """Refuse `dog/train/`, `dog/val/`: the splits would silently become one."""
    inside: dict[str, set[str]] = defaultdict(set)
    for parts in (path.split("/") for path in directories):
        if len(parts) > 1 and split_of(parts[1]):
            inside[parts[0]].add(parts[1])
    for top, found in sorted(inside.items()):
        if len({split_of(name) for name in found}) > 1:
            raise PipelineError(
                f"{root}: {top}/ holds splits of its own ({', '.join(sorted(found))}): either it is a data set (give "
                f"images.path={root / top}), or a class whose subdirectories do not count (images.top_folders=classes)"
            )


def _is_repeated(below: Iterable[tuple[str, ...]], splits: Mapping[str, str]) -> bool:
    inside = [parts for parts in below if parts and parts[0] in splits]
    return all(len(parts) > 1 and (parts[1] == parts[0] or split_of(parts[1]) == splits[parts[0]]) for parts in inside)
