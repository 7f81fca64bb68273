"""The remote root: every artifact on an object store too, from which any machine takes what another has built.

    <url>/<stage>/<fingerprint>/<digest>/...          the content
    <url>/<stage>/<fingerprint>/artifact.json         written last: the artifact is there, and this is its digest
    <url>/<stage>/<fingerprint>.partial/...           checkpoints of a training that goes on, and of which run it is

Content lies under its digest because nothing locks an object store: two machines that build one artifact at the same
time write side by side where their bytes differ (a GPU's sums do), the same objects where they do not. The record that
comes first decides which of the two the artifact is; a reader never sees a mixture.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from storage.artifact_record import RECORD, Artifact, parse_record
from storage.errors import RemoteDamaged
from storage.files import files_below, write_whole
from storage.remote_folder import RemoteFolder

logger = logging.getLogger("mapet.storage")


@dataclass(frozen=True)
class RemoteRoot:
    """The artifacts under an address such as `s3://bucket/prefix`; errors as of `RemoteFolder`."""

    folder: RemoteFolder

    def publish(self, artifact: Artifact, *, anew: bool = False) -> None:
        """Upload an artifact unless it is there. Interrupted at any moment it leaves nothing that counts, and what was
        uploaded is not uploaded again. Objects of it that have gone or been cut short since are uploaded again.

        Args:
            anew: what is there is known to be damaged; every object of it is written again.

        Raises:
            RemoteUnavailable, RemoteDamaged: it is not there.
        """
        home, record = self._home(artifact.stage, artifact.fingerprint), (artifact.path / RECORD).read_bytes()
        content = home / _content(artifact)
        there = None if anew else _parsed(home.read(RECORD))
        if there is None:
            content.upload(artifact.path, artifact.files, anew=anew)
            if anew:
                home.write(RECORD, record)
            elif not home.create(RECORD, record) and (there := _parsed(home.read(RECORD))) is None:
                home.write(RECORD, record)  # over one that nobody can read and that would stay for ever
        elif there.digest == artifact.digest and not content.has_sizes(artifact.files):
            logger.warning("%s: objects are missing or cut short; they are uploaded again", content.url)
            content.upload(artifact.path, artifact.files)
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
                f"{home.url}/{RECORD}: expected the record of {stage} {fingerprint}, found {len(record)} other bytes"
            )
        logger.info("%s: downloading %s, %.1f MB", stage, home.url, artifact.bytes / 1e6)
        folder.mkdir(parents=True, exist_ok=True)
        (home / _content(artifact)).download(artifact.files, folder)
        for name in set(files_below(folder)) - artifact.files.keys():
            (folder / name).unlink()  # of a killed download, perhaps of what the remote had before
        write_whole(folder / RECORD, record)
        return True

    def fingerprints(self, stage: str) -> list[str]:
        """List the fingerprints of the stage's artifacts."""
        names = (self.folder / stage).folders()
        return [name for name in names if self.has(stage, name)]

    def has(self, stage: str, fingerprint: str) -> bool:
        """Tell whether the artifact is there, by its record alone."""
        return _parsed(self._home(stage, fingerprint).read(RECORD)) is not None

    def _home(self, stage: str, fingerprint: str) -> RemoteFolder:
        return self.folder / stage / fingerprint


def _content(artifact: Artifact) -> str:
    return artifact.digest[:16]


def _parsed(record: bytes | None) -> Artifact | None:
    return None if record is None else parse_record(record, Path())
