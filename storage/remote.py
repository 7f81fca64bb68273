"""The remote root: every artifact on an object store too, from which any machine takes what another has built.

    <url>/<stage>/<fingerprint>/<digest>/...          the content
    <url>/<stage>/<fingerprint>/artifact.json         written last: the artifact is there, and this is its digest
    <url>/<stage>/<fingerprint>.partial/...           checkpoints of a training that goes on

Content lies under its digest because nothing locks an object store: two machines that build one artifact at the same
time write side by side where their bytes differ (a GPU's sums do), the same objects where they do not. The record that
comes first decides which of the two the artifact is; a reader never sees a mixture.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from storage.artifact_record import RECORD, Artifact, parse_record
from storage.errors import RemoteDamaged, RemoteUnavailable
from storage.files import replace_file
from storage.remote_folder import RemoteFolder

logger = logging.getLogger("mapet.storage")


@dataclass(frozen=True)
class RemoteRoot:
    """The artifacts under an address such as `s3://bucket/prefix`; errors as of `RemoteFolder`."""

    folder: RemoteFolder

    def publish(self, artifact: Artifact) -> None:
        """Upload an artifact unless it is there. Interrupted at any moment it leaves nothing that counts, and what was
        uploaded is not uploaded again.

        Raises:
            RemoteUnavailable, RemoteDamaged: it is not there; the message says where it is complete.
        """
        try:
            self._publish(artifact)
        except (RemoteUnavailable, RemoteDamaged) as error:
            raise type(error)(
                f"{error}. The artifact is complete at {artifact.path}; the next run uploads it"
            ) from error

    def _publish(self, artifact: Artifact) -> None:
        home, record = self._home(artifact.stage, artifact.fingerprint), (artifact.path / RECORD).read_bytes()
        there = _parsed(home.read(RECORD))
        if there is None:
            (home / _content(artifact)).upload(artifact.path, artifact.files)
            if not home.create(RECORD, record) and (there := _parsed(home.read(RECORD))) is None:
                home.write(RECORD, record)  # over one that nobody can read and that would stay for ever
        if there and there.digest != artifact.digest:
            logger.warning(
                "%s: another machine's artifact is there with other bytes (digest %s, here %s); both stay as they are",
                *(home.url, there.digest[:12], artifact.digest[:12]),
            )
        beginnings = self.folder / artifact.stage / f"{artifact.fingerprint}.partial"
        beginnings.remove(sorted(beginnings.sizes()))  # the record of a checkpoint, .json, before its .pt

    def fetch(self, stage: str, fingerprint: str, folder: Path) -> bool:
        """Download an artifact with its record into a folder of its own; False if the remote has none.

        The folder may hold what a killed download has finished; every byte is compared with the record's checksums.

        Raises:
            RemoteDamaged: a file or the record is not what was uploaded.
        """
        home = self._home(stage, fingerprint)
        record = home.read(RECORD)
        if record is None:
            return False
        artifact = _parsed(record)
        if artifact is None or (artifact.stage, artifact.fingerprint) != (stage, fingerprint):
            raise RemoteDamaged(
                f"{home.url}/{RECORD}: expected the record of {stage} {fingerprint}, found {len(record)} other bytes; "
                "remove it, and the next run makes the artifact anew"
            )
        logger.info("%s: downloading %s, %.1f MB", stage, home.url, artifact.bytes / 1e6)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (home / _content(artifact)).download(artifact.files, folder)
        except RemoteDamaged as error:
            raise RemoteDamaged(
                f"{error}; remove {home.url}/{RECORD}, and the next run makes the artifact anew"
            ) from error
        for path in folder.rglob("*"):  # of a killed download, perhaps of what the remote had before
            if path.is_file() and path.relative_to(folder).as_posix() not in artifact.files:
                path.unlink()
        with replace_file(folder / RECORD) as temporary:
            temporary.write_bytes(record)
        return True

    def fingerprints(self, stage: str) -> list[str]:
        """Of the stage's artifacts."""
        names = (self.folder / stage).folders()
        return [name for name in names if self.has(stage, name)]

    def has(self, stage: str, fingerprint: str) -> bool:
        """Whether the artifact is there, by its record alone."""
        return _parsed(self._home(stage, fingerprint).read(RECORD)) is not None

    def _home(self, stage: str, fingerprint: str) -> RemoteFolder:
        return self.folder / stage / fingerprint


def _content(artifact: Artifact) -> str:
    return artifact.digest[:16]


def _parsed(record: bytes | None) -> Artifact | None:
    return None if record is None else parse_record(record, Path())
