"""Where things are under the data root. The only file that joins these paths."""

from dataclasses import dataclass
from pathlib import Path

from storage.files import sha256_text
from storage.remote import RemoteRoot
from storage.remote_folder import RemoteFolder


@dataclass(frozen=True)
class Layout:
    """`<data root>/<stage>/<fingerprint>/` for artifacts; everything else beside them.

    `remote`: the object store on which every artifact is too, and from which other machines take it.
    """

    root: Path
    remote: RemoteRoot | None = None

    def artifact(self, stage: str, fingerprint: str) -> Path:
        return self.root / stage / fingerprint

    def partial(self, stage: str, fingerprint: str) -> Path:
        """Name the unpublished sibling in which a stage works; it survives a kill and is resumed."""
        return self.root / stage / f"{fingerprint}.partial"

    def download(self, stage: str, fingerprint: str) -> Path:
        """Name the folder into which an artifact is downloaded, apart from what was begun here."""
        return self.root / stage / f"{fingerprint}.download.partial"

    def mirror(self, folder: Path) -> RemoteFolder | None:
        """Return the folder of the remote that corresponds to one under the data root; None without a remote."""
        if self.remote is None or not folder.is_relative_to(self.root):
            return None
        return self.remote.folder / folder.relative_to(self.root).as_posix()

    def stage(self, stage: str) -> Path:
        return self.root / stage

    def lock(self, stage: str, fingerprint: str) -> Path:
        return self.root / "locks" / f"{stage}-{fingerprint}.lock"

    @property
    def tracking_lock(self) -> Path:
        return self.root / "locks" / "mlflow.lock"

    @property
    def tracking_database(self) -> Path:
        return self.root / "mlflow" / "mlflow.db"

    @property
    def tracking_artifacts(self) -> Path:
        return self.root / "mlflow" / "artifacts"

    @property
    def services(self) -> Path:
        """What `make up` runs on this machine: its records, logs, and Prefect's database."""
        return self.root / "services"

    def checksums(self, index: str) -> Path:
        """Name the file of checksums that the images of an index (its digest) had when they were first read."""
        return self.root / "cache" / "checksums" / f"{index[:16]}.crc32c"

    def contents(self, source: Path) -> Path:
        """Name the file of what was read below `source` to index images by their contents."""
        return self.root / "cache" / "contents" / f"{sha256_text(str(source))[:16]}.parquet"

    def network(self, key: str) -> Path:
        """Name the file of what was found out about a network when it was loaded."""
        return self.root / "cache" / "networks" / f"{key}.json"

    @property
    def decoded_tokens(self) -> Path:
        """Memory-mapped copies of token stores, one per store and node."""
        return self.root / "cache" / "tokens"
