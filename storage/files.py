"""Writing files that are either whole or absent, and checksums of files and trees."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

TEMPORARY = ".tmp"  # suffix of files that a killed writer may leave; swept before an artifact is published
_BLOCK = 1 << 22


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; when the block succeeds it is synced and takes `path`'s name.

    Zarr and pyarrow do not sync: after a power cut a "finished" file could be short. We do, file and folder. Several
    processes, on several machines, and several threads may replace a file at once: the last one stays.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{token_hex(4)}{TEMPORARY}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_whole(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush everything below `folder`: file by file, or the whole machine at once where there are thousands."""
    paths = [Path(root, name) for root, _, names in os.walk(folder) for name in (*names, ".")]
    if len(paths) > 512:
        os.sync()
        return
    for path in paths:
        sync(path)


def sweep_temporaries(folder: Path) -> None:
    """Remove what killed writers left: ours (`.tmp`) and Zarr's (`.partial`)."""
    for root, _, names in os.walk(folder):
        for name in names:
            if name.endswith((TEMPORARY, ".partial")):
                Path(root, name).unlink()


def canonical_json(value: Any) -> str:
    """Write equal values as equal text: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def checksums(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Hash files below `folder`, on all cores, into `{name: {"bytes", "sha256"}}`."""
    digests = on_all_cores(lambda name: sha256_file(folder / name), names)
    found = zip(names, digests, strict=True)
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": digest} for name, digest in found}


def on_all_cores(work: Callable[[str], str], names: Sequence[str]) -> list[str]:
    """Call `work` for each name and return what it gives, in their order.

    A thread takes every so many of them: a task for each of thousands of small files costs more than reading them.
    """
    cores = os.cpu_count() or 1
    done = [""] * len(names)
    with ThreadPoolExecutor(cores) as pool:
        for first, part in enumerate(pool.map(lambda first: [work(one) for one in names[first::cores]], range(cores))):
            done[first::cores] = part
    return done


def files_below(folder: Path) -> list[str]:
    """List the relative path of every file, sorted as paths are: part by part."""
    start = len(folder.parts)
    parts = ((*Path(root).parts[start:], name) for root, _, names in os.walk(folder) for name in names)
    return ["/".join(path) for path in sorted(parts)]


def bytes_below(folder: Path) -> int:
    """Add up the sizes of the files below `folder`."""
    return sum((folder / name).stat().st_size for name in files_below(folder))


def free_bytes(folder: Path) -> int:
    """Free space on the disk that will hold `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
