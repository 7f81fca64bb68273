"""Images inside plain tar shards: WebDataset's layout, read by offset instead of as a stream.

The headers are read once, each image is then one `pread` at its offset, which is as fast as a file and needs no
inodes. Nothing is ever extracted. A sample is what shares a key, the path up to the first dot of the file name:
`n01440764_10026.jpg`, `.cls` (a class number) and `.json` belong together (github.com/webdataset/webdataset).
"""

import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.sources.base import ImageSourceOptions, Scan
from pipeline.data.sources.contents import TarContents
from pipeline.data.sources.names import split_of_container
from pipeline.data.sources.rows import Label, ScanRows
from pipeline.data.sources.walk import walk_files
from pipeline.errors import PipelineError
from storage.image_index import ImageEntry

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CLASSES_FILE = "classes.txt"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
_OPEN_SHARDS = 4


class TarReader:
    """Reads members by offset; the shards used last stay open."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, entry: ImageEntry) -> bytes:
        data = os.pread(self._descriptor(entry.container), entry.bytes, entry.offset)
        if len(data) != entry.bytes:
            raise OSError(f"{entry.container} ends inside {entry.key}: {len(data)} of {entry.bytes} bytes")
        return data

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, container: str) -> int:
        if container in self._open:
            self._open.move_to_end(container)
            return self._open[container]
        if len(self._open) == _OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        descriptor = os.open(self._root / container, os.O_RDONLY)
        self._open[container] = descriptor
        return descriptor


@dataclass(frozen=True)
class WebDatasetSource:
    """All tar files below `root`."""

    root: Path
    options: ImageSourceOptions

    def reader(self) -> TarReader:
        return TarReader(self.root)

    def scan(self) -> Scan:
        """Raises PipelineError: no tar files, compressed or truncated ones, links, labels that cannot be understood."""
        containers = sorted(file.path for file in walk_files(self.root, (".tar", *_COMPRESSED)))
        if not containers:
            raise PipelineError(f"{self.root}: no .tar files found; check images.path, or set images.kind=folder")
        rows = ScanRows(self.root, self.options)
        others: list[str] = []
        for container in containers:
            others += _add_shard(rows, self.root / container, container, self.options.json_label_key)
        if others:
            rows.notes.append(
                f"{len(others):,} files such as {others[0]!r} have two extensions and are not taken as images"
            )
        return rows.build(
            classes=_classes_listed(self.root),
            unlabelled_hint=f", neither as .cls nor as {self.options.json_label_key!r} in a .json "
            "(images.json_label_key)",
        )


@dataclass(frozen=True, slots=True)
class _Member:
    """A file inside a shard: `key` is shared by the files of a sample, `extension` is all after the first dot."""

    name: str
    key: str
    extension: str
    offset: int
    bytes: int


def _add_shard(rows: ScanRows, path: Path, container: str, json_label_key: str) -> list[str]:
    """Adds the shard's images and returns the files that look like images but are not."""
    contents = TarContents()
    members = list(_members(path, container, contents))
    rows.identify(container, contents.hexdigest())
    images = [member for member in members if member.extension in IMAGE_EXTENSIONS]
    label_files: dict[str, _Member] = {}
    for extension in ("json", "cls"):  # a .cls outranks a .json
        label_files |= {member.key: member for member in members if member.extension == extension}
    split = split_of_container(container)
    with open(path, "rb") as shard:
        labels = {
            key: _read_label(shard.fileno(), label_files[key], path, json_label_key)
            for key in {image.key for image in images} & label_files.keys()
        }
    for image in images:
        rows.add(
            image.name,
            told_split=split,
            label=labels.get(image.key),
            container=container,
            key=image.name,
            offset=image.offset,
            size=image.bytes,
        )
    return [member.name for member in members if _is_annotation(member)]


def _members(path: Path, container: str, contents: TarContents) -> Iterator[_Member]:
    """The files of a shard; every header goes into `contents`."""
    try:
        _refuse_compressed(path)
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                contents.add(info)
                directory, _, file_name = info.name.rpartition("/")
                stem, _, extension = file_name.partition(".")
                if info.isdir() or not stem:  # hidden files have no key
                    continue
                member = _Member(info.name, f"{directory}/{stem}", extension.lower(), info.offset_data, info.size)
                if not info.isreg() and member.extension in IMAGE_EXTENSIONS:
                    raise PipelineError(
                        f"{path}: {info.name!r} is a link; write it as a file (tar --hard-dereference -h)"
                    )
                yield member
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise PipelineError(f"{path}: truncated, or not a tar file ({error}); copy {container} again") from error
    _require_proper_end(path, end)


def _require_proper_end(path: Path, end: int) -> None:
    """`tarfile` stops in silence at a header that is cut or damaged, and at the seam of two joined tars."""
    with open(path, "rb") as file:
        file.seek(end)
        rest = file.read(1 << 20)
    if len(rest) < tarfile.BLOCKSIZE or any(rest[: tarfile.BLOCKSIZE]):
        raise PipelineError(f"{path}: truncated or damaged at byte {end:,}, where a header should be; copy it again")
    if any(rest):
        raise PipelineError(f"{path}: a second tar begins after byte {end:,}; joined tars must be written as one")


def _refuse_compressed(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(8)
    by_content = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), "")
    if by_content or path.name.lower().endswith(_COMPRESSED):
        raise PipelineError(
            f"{path}: compressed ({by_content or path.suffix}), so no image can be read by its offset; decompress it "
            "to a plain .tar and move the compressed file away"
        )


def _read_label(descriptor: int, member: _Member, path: Path, json_label_key: str) -> Label:
    data = os.pread(descriptor, member.bytes, member.offset)
    try:
        if member.extension == "cls":
            return int(data)
        label = json.loads(data).get(json_label_key)
    except (ValueError, AttributeError):
        expected = "a whole number" if member.extension == "cls" else "a JSON object"
        raise PipelineError(f"{path}: {member.name!r} holds {data[:40]!r}; expected {expected}") from None
    if isinstance(label, bool) or not isinstance(label, int | str | None):
        raise PipelineError(
            f"{path}: {json_label_key!r} in {member.name!r} is {label!r}; expected a class number or a class name, "
            "choose another images.json_label_key"
        )
    return label


def _is_annotation(member: _Member) -> bool:
    """WebDataset gives `x.seg.png` the extension `seg.png`: an annotation of `x`, not the image."""
    return "." in member.extension and member.extension.rpartition(".")[2] in IMAGE_EXTENSIONS


def _classes_listed(root: Path) -> tuple[str, ...]:
    path = root / CLASSES_FILE
    if not path.is_file():
        return ()
    try:
        return tuple(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: cannot be read as UTF-8 text, one class per line: {error}") from error
