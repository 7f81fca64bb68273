"""Object stores for tests: moto's S3 server over HTTP, and an fsspec file system that breaks when it is told to."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer

from storage.artifact import Artifact
from storage.layout import Layout
from storage.remote import RemoteRoot
from storage.remote_folder import RemoteFolder

BUCKET = "mapet-tests"


def host(root: Path, url: str) -> Layout:
    """Return one machine: its own disk, and the object store that it shares with the others."""
    return Layout(root, RemoteRoot(RemoteFolder(url)))


def contents(artifact: Artifact) -> dict[str, bytes]:
    """Return every byte of an artifact, its record included."""
    return {
        path.relative_to(artifact.path).as_posix(): path.read_bytes()
        for path in sorted(artifact.path.rglob("*"))
        if path.is_file()
    }


@contextmanager
def s3_server(*, port: int = 0) -> Iterator[int]:
    """Yield the port of an S3 server on this machine that the environment's keys and endpoint lead to. What it holds
    stays in this process: a server that is started again on the same port has it too."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        port = server.get_host_and_port()[1]
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("AWS_ACCESS_KEY_ID", "somebody")
            environment.setenv("AWS_SECRET_ACCESS_KEY", "something-secret")
            environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
            environment.setenv("AWS_MAX_ATTEMPTS", "1")  # a server that is gone in a test does not come back
            files = s3_files()
            if not files.exists(BUCKET):
                files.mkdir(BUCKET)
            yield port
    finally:
        server.stop()


def s3_files() -> fsspec.AbstractFileSystem:
    """Return the file system of the environment as it is now; fsspec would keep that of an earlier one."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    return fsspec.filesystem("s3", use_listings_cache=False)


class BreakingFiles(MemoryFileSystem):
    """Objects in memory, `breaking://...`. Writing stops after `writes_left`, in the middle of an object."""

    protocol = "breaking"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    writes_left: ClassVar[float] = float("inf")
    flipped_reads: ClassVar[int] = 0
    flipped_writes: ClassVar[int] = 0
    knows_conditions: ClassVar[bool] = True

    @classmethod
    def reset(cls) -> None:
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.writes_left, cls.flipped_reads, cls.flipped_writes, cls.knows_conditions = float("inf"), 0, 0, True

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("breaking://", "memory://", 1)))

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:  # type: ignore[override]
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        if mode == "create" and not self.knows_conditions:
            raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")
        if self.writes_left <= 0:
            super().pipe_file(path, value[: len(value) // 2])
            raise ConnectionResetError("the connection was reset")
        type(self).writes_left -= 1
        if self.flipped_writes:
            type(self).flipped_writes -= 1
            value = bytes([value[0] ^ 1]) + value[1:]
        super().pipe_file(path, value, mode=mode)

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:  # type: ignore[override]
        value = self.cat_file(rpath)
        if self.flipped_reads:
            type(self).flipped_reads -= 1
            value = bytes([value[0] ^ 1]) + value[1:]
        Path(lpath).write_bytes(value)


fsspec.register_implementation("breaking", "tests.object_store.BreakingFiles", clobber=True)
