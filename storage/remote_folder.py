"""A folder on an object store, through fsspec: S3 and its relatives, or whatever else fsspec reaches.

An object store has no rename, but an object appears whole or not at all. So whatever consists of several objects is
written content first, and last the one object that says it is there.
"""

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from storage.errors import RemoteAddressInvalid, RemoteDamaged, RemoteUnavailable, StorageError
from storage.files import TEMPORARY, sha256_bytes, sha256_file
from storage.recorded_files import Files, difference

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_TRANSFERS = 8  # at once: an artifact may be thousands of small pictures, each a round trip
_READ_BACK = 8 << 20  # bytes up to which an upload is compared by reading it again
_ATTEMPTS = 2  # to download a file: what is damaged on its way comes whole the second time
_OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class RemoteFolder:
    """The objects whose addresses begin with `url`.

    Keys and the endpoint come from where the store's library looks for them (s3fs: `AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL`, or the files under `~/.aws`), never from the address.

    Raises:
        RemoteAddressInvalid: an address with keys in it, or one that fsspec does not know.
        RemoteUnavailable: from every method: the store does not answer, or not to us.
    """

    url: str

    def __post_init__(self) -> None:
        # Addresses are printed, logged and written into records: one with keys in it is not even repeated here.
        if re.search(r"://[^/]*@", self.url):
            raise RemoteAddressInvalid(
                "the address of the object store has keys in it; give s3://bucket/prefix alone, and the keys as "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        import fsspec  # a tenth of a second, which whoever has no object store need not wait for

        protocol, _, rest = self.url.partition("://")
        if not rest.strip("/") or protocol not in fsspec.available_protocols():
            raise RemoteAddressInvalid(
                f"{self.url!r}: expected the address of an object store that fsspec knows, such as s3://bucket/prefix"
            )

    def __truediv__(self, name: str) -> "RemoteFolder":
        return RemoteFolder(self._address(name))

    def read(self, name: str) -> bytes | None:
        """Read an object's bytes; None if there is no such object."""
        with self._saying("read"):
            files, path = self._open(name)
            try:
                return bytes(files.cat_file(path))
            except FileNotFoundError:
                files.find(path.rpartition("/")[0])  # a missing bucket looks the same; listing it is an error
                return None

    def write(self, name: str, data: bytes) -> None:
        with self._saying("write"):
            files, path = self._open(name)
            files.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one; returns whether it was written.

        S3 decides this itself (`If-None-Match`). Some of its relatives do not know the condition and refuse it; there
        two that look at the same moment both write, and the later one stays.
        """
        with self._saying("write"):
            files, path = self._open(name)
            try:
                files.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, OSError) as error:
                if not isinstance(error, NotImplementedError) and error.errno != errno.ENOSYS:
                    raise
                if files.exists(path):
                    return False
                files.pipe_file(path, data)
            return True

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every object below, by its path from here."""
        with self._saying("list"):
            files, path = self._open("")
            found = files.find(path, detail=True)
            return {name[len(path) + 1 :]: int(entry["size"]) for name, entry in found.items()}

    def folders(self) -> list[str]:
        """List the names of the folders directly below."""
        with self._saying("list"):
            files, path = self._open("")
            try:
                entries = files.ls(path, detail=True)
            except FileNotFoundError:
                return []
            return sorted(
                entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"
            )

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, in this order; those that are not there are no error."""
        with self._saying("remove"):
            for name in names:
                files, path = self._open(name)
                with suppress(FileNotFoundError):
                    files.rm_file(path)

    def has_sizes(self, contents: Files) -> bool:
        """Tell whether objects of these names and sizes are there; no byte of them is read."""
        there = self.sizes()
        return all(there.get(name) == expected["bytes"] for name, expected in contents.items())

    def upload(self, folder: Path, contents: Files, *, anew: bool = False) -> None:
        """Upload files of a local folder; what a killed upload has finished is not sent again, unless `anew`.

        Every object is compared afterwards: its size, and its bytes where they are few. Of more bytes s3fs sends a
        CRC-32 with every part, which S3 checks before it takes them, and `download` compares all bytes of everything.

        Raises:
            RemoteDamaged: what arrived is not what was sent.
        """
        there = {} if anew else self.sizes()

        def send(name: str) -> None:
            if not self._holds(name, contents[name], there.get(name)):
                with self._saying("write"):
                    files, path = self._open(name)
                    files.put_file(str(folder / name), path)

        def compare(name: str) -> None:
            expected = contents[name]
            if not self._holds(name, expected, there.get(name)):
                raise RemoteDamaged(
                    f"{self._address(name)}: expected {_words(expected)} after uploading it, found "
                    f"{there.get(name, 'no')} bytes, or others"
                )

        _in_parallel(send, contents)
        there = self.sizes()
        _in_parallel(compare, contents)

    def download(self, contents: Files, folder: Path) -> None:
        """Download objects into a local folder, each compared with its checksum; what is there already stays.

        Raises:
            RemoteDamaged: an object is missing, or twice came with other bytes than those that were uploaded.
        """

        def fetch(name: str) -> None:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise RemoteDamaged(f"{self.url}: a record names {name!r}, which lies outside of its artifact")
            target, expected = folder / name, contents[name]
            if difference(target, expected):
                target.parent.mkdir(parents=True, exist_ok=True)
                self._download(name, target, expected)

        _in_parallel(fetch, contents)

    def _download(self, name: str, target: Path, expected: Mapping[str, Any]) -> None:
        temporary, found = target.with_name(target.name + TEMPORARY), "nothing"
        for _ in range(_ATTEMPTS):
            try:
                with self._saying("read"):
                    files, path = self._open(name)
                    with suppress(FileNotFoundError):
                        files.get_file(path, str(temporary))
                if not difference(temporary, expected):
                    os.replace(temporary, target)
                    return
                if temporary.exists():
                    found = f"{temporary.stat().st_size} bytes, SHA-256 {sha256_file(temporary)[:12]}"
            finally:
                temporary.unlink(missing_ok=True)
        raise RemoteDamaged(f"{self._address(name)}: expected {_words(expected)}, found {found}")

    def _holds(self, name: str, expected: Mapping[str, Any], size: int | None) -> bool:
        if size is None or size != expected["bytes"]:
            return False
        return size > _READ_BACK or sha256_bytes(self.read(name) or b"") == expected["sha256"]

    def _open(self, name: str) -> "tuple[AbstractFileSystem, str]":
        """Return the file system, which fsspec keeps, and the path in it.

        No listing that it remembers may be used: other machines write there too.
        """
        from fsspec.core import url_to_fs

        options = {"auto_mkdir": True} if self.url.startswith(("file:", "local:")) else {}
        files, path = url_to_fs(self._address(name), use_listings_cache=False, **options)
        return files, str(path)

    def _address(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/{name}".rstrip("/")

    @contextmanager
    def _saying(self, doing: str) -> Iterator[None]:
        """Put any failure into one sentence. The libraries behind fsspec share no class of errors, so all are taken."""
        try:
            yield
        except StorageError:
            raise
        except ImportError as error:
            raise RemoteUnavailable(f"{self.url}: {error}; pip install 'mapet[s3]' has what S3 needs") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _OWN_DISK:
                raise
            reason = str(error) or type(error).__name__
            raise RemoteUnavailable(
                f"{self.url}: cannot {doing} there: {reason.rstrip('.')}; check the address, the network and that "
                "the bucket exists; on S3 also AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
            ) from error


def _words(expected: Mapping[str, Any]) -> str:
    return f"{expected['bytes']} bytes, SHA-256 {expected['sha256'][:12]}"


def _in_parallel(work: Callable[[str], None], names: Iterable[str]) -> None:
    """Do the work for every name in threads. The first error ends it: nothing more is begun."""
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        begun = [pool.submit(work, name) for name in names]
        try:
            for one in begun:
                one.result()
        finally:
            pool.shutdown(cancel_futures=True)
