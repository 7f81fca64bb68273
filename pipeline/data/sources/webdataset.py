"""Images inside plain tar shards: WebDataset's layout, read by offset instead of as a stream.

The headers are read once, each image is then one `pread` at its offset, which is as fast as a file and needs no
inodes. Nothing is ever extracted. A sample is what shares a key, the path up to the first dot of the file name:
`n01440764_10026.jpg`, `.cls` (a class number) and `.json` belong together (github.com/webdataset/webdataset). By that
rule `22.05.jpg` is the part `05.jpg` of sample `22`, as `22.seg.png` is its part `seg.png`: it is taken as an image
where the sample has no other.
"""

import json
import os
import shlex
import tarfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.formats import ENDINGS, ending_of
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.base import Scan
from pipeline.data.sources.contents import TarContents
from pipeline.data.sources.names import is_hidden, split_of_container
from pipeline.data.sources.rows import Label, ScanRows
from pipeline.data.sources.walk import Passed, walk_files
from pipeline.engine.errors import PipelineError
from storage.image_index import ImageEntry

IMAGE_EXTENSIONS = frozenset(ending.removeprefix(".") for ending in ENDINGS)
LABEL_EXTENSIONS = ("json", "cls")  # a .cls outranks a .json
ANY_MEMBER = "*"
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
        passed = Passed()
        containers = sorted(file.path for file in walk_files(self.root, (".tar", *_COMPRESSED), passed))
        if not containers:
            raise PipelineError(f"{self.root}: no .tar files found; check images.path, or set images.kind=folder")
        rows = ScanRows(self.root, self.options)
        rows.left_out.update(passed.endings)
        classes = _classes_listed(self.root)
        if classes:
            rows.left_out.subtract({".txt": 1})
        dotted: list[str] = []
        others: list[str] = []
        for container in containers:
            shard = _Shard(self.root / container, container, self.options)
            shard.add_to(rows)
            dotted += shard.dotted
            others += shard.annotations
        if others:
            rows.notes.append(
                f"{len(others):,} files such as {others[0]!r} have two extensions and are not taken as images"
            )
        if dotted:
            rows.notes.append(
                f"{len(dotted):,} images such as {dotted[0]!r} have dots in their names, and end for WebDataset at the "
                "first; they are images of their own here, as their samples have no other"
            )
        return rows.build(
            classes=classes,
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

    @property
    def ending(self) -> str:
        return self.extension.rpartition(".")[2]

    @property
    def stem(self) -> str:
        """The key and what stands before the last dot: the key of an image whose name has more dots."""
        return f"{self.key}.{self.extension}".removesuffix(f".{self.ending}")


class _Shard:
    """A tar whose images become rows: `dotted` and `annotations` are the members of two extensions, taken and not."""

    def __init__(self, path: Path, container: str, options: ImageSourceOptions) -> None:
        self._path, self._container, self._options = path, container, options
        contents = TarContents()
        self._members = list(_members(path, container, contents))
        self._contents = contents.hexdigest()
        pictures = [member for member in self._members if member.ending in IMAGE_EXTENSIONS]
        self._images = self._chosen(pictures)
        taken = {member.name for member in self._images}
        self.dotted = [] if options.member_ending else [one.name for one in self._images if "." in one.extension]
        self.annotations = [member.name for member in pictures if member.name not in taken]

    def add_to(self, rows: ScanRows) -> None:
        rows.identify(self._container, self._contents)
        split = split_of_container(self._container)
        labels = self._labels()
        for image in self._images:
            rows.add(
                image.name,
                told_split=split,
                label=labels.get(image.stem, labels.get(image.key)),
                container=self._container,
                key=image.name,
                offset=image.offset,
                size=image.bytes,
            )
        taken = {member.name for member in self._images}
        others = (one for one in self._members if one.name not in taken and one.ending not in LABEL_EXTENSIONS)
        rows.left_out.update(f".{member.extension}" if member.extension else "" for member in others)

    def _chosen(self, pictures: list[_Member]) -> list[_Member]:
        """Return the members that are images. Raises PipelineError when samples have several and none is plain."""
        if wanted := self._options.member_ending.lower().removeprefix("."):
            return [member for member in pictures if wanted in (ANY_MEMBER, member.extension)]
        plain = {member.key for member in pictures if member.extension == member.ending}
        annotations = {member.extension for member in pictures if member.key in plain} - IMAGE_EXTENSIONS
        parts: dict[str, list[_Member]] = defaultdict(list)
        for member in pictures:
            if member.key not in plain and member.extension not in annotations:
                parts[member.key].append(member)
        for members in parts.values():
            if len(members) > 1 and any(_is_called(member) for member in members):
                first, second = members[:2]
                raise PipelineError(
                    f"{self._path}: {first.name!r} and {second.name!r} are either parts of one sample (say which is "
                    f"its image: images.member_ending={first.extension}) or images of their own "
                    f"(images.member_ending={ANY_MEMBER})"
                )
        return [member for member in pictures if member.extension == member.ending or member in parts[member.key]]

    def _labels(self) -> dict[str, Label]:
        """Return the labels by key and by stem."""
        wanted = {name for image in self._images for name in (image.key, image.stem)}
        files: dict[str, _Member] = {}
        for ending in LABEL_EXTENSIONS:
            files |= {one.stem: one for one in self._members if one.ending == ending and one.stem in wanted}
        with open(self._path, "rb") as shard:
            return {
                stem: _read_label(shard.fileno(), member, self._path, self._options.json_label_key)
                for stem, member in files.items()
            }


def _is_called(part: _Member) -> bool:
    """Return whether what stands between the first dot and the last has letters: `seg`, and not `05`."""
    return any(letter.isalpha() for letter in part.extension.removesuffix(part.ending))


def _members(path: Path, container: str, contents: TarContents) -> Iterator[_Member]:
    """Yield the files of a shard; every header goes into `contents`."""
    try:
        _refuse_compressed(path)
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                contents.add(info)
                directory, _, file_name = info.name.rpartition("/")
                stem, _, extension = file_name.partition(".")
                if info.isdir() or not stem or is_hidden(info.name):
                    continue
                member = _Member(info.name, f"{directory}/{stem}", extension.lower(), info.offset_data, info.size)
                _refuse_tars_inside(member, path)
                if not info.isreg() and member.ending in IMAGE_EXTENSIONS:
                    raise PipelineError(
                        f"{path}: {info.name!r} is a link; write it as a file (tar --hard-dereference -h)"
                    )
                yield member
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise PipelineError(f"{path}: truncated, or not a tar file ({error}); copy {container} again") from error
    _require_proper_end(path, end)


def _require_proper_end(path: Path, end: int) -> None:
    """Refuse what `tarfile` passes over: it stops in silence at a header that is cut or damaged, and at the seam of two
    joined tars."""
    with open(path, "rb") as file:
        file.seek(end)
        rest = file.read(1 << 20)
    if len(rest) < tarfile.BLOCKSIZE or any(rest[: tarfile.BLOCKSIZE]):
        raise PipelineError(f"{path}: truncated or damaged at byte {end:,}, where a header should be; copy it again")
    if any(rest):
        raise PipelineError(f"{path}: a second tar begins after byte {end:,}; joined tars must be written as one")


def _refuse_tars_inside(member: _Member, path: Path) -> None:
    if ending_of(member.name) == ".tar":
        folder = shlex.quote(str(path.with_suffix("")))
        raise PipelineError(
            f"{path}: holds tars ({member.name!r}, ...), as ImageNet's training set does; unpack both layers, `mkdir "
            f"{folder} && tar -xf {shlex.quote(str(path))} -C {folder} && cd {folder} && for t in *.tar; do mkdir "
            '"${t%.tar}" && tar -xf "$t" -C "${t%.tar}" && rm "$t"; done`, and read the folder with images.kind=folder'
        )


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
        if member.ending == "cls":
            return int(data)
        label = json.loads(data).get(json_label_key)
    except (ValueError, AttributeError):
        expected = "a whole number" if member.ending == "cls" else "a JSON object"
        raise PipelineError(f"{path}: {member.name!r} holds {data[:40]!r}; expected {expected}") from None
    if isinstance(label, bool) or not isinstance(label, int | str | None):
        raise PipelineError(
            f"{path}: {json_label_key!r} in {member.name!r} is {label!r}; expected a class number or a class name, "
            "choose another images.json_label_key"
        )
    return label


def _classes_listed(root: Path) -> tuple[str, ...]:
    path = root / CLASSES_FILE
    if not path.is_file():
        return ()
    try:
        return tuple(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: cannot be read as UTF-8 text, one class per line: {error}") from error
