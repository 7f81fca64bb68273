"""Artifacts: what a stage writes, complete or absent, immutable, addressed by what defines it.

    <data root>/<stage>/<fingerprint>/            the content, and artifact.json: recipe, checksums, notes
    <data root>/<stage>/<fingerprint>.partial/    the same before it is published; a killed stage goes on here
                                                  (building.json: of the building alone, never published)

The fingerprint is made from the recipe (stage, its version, the options that define the result, the digests of the
inputs), so it is known before the work is done. The digest is made from the bytes of the content, so whatever is built
on an artifact depends on what is in it, not on when or where it was made.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.artifact_record import RECORD, Artifact, Recipe, read_artifact, render_record
from storage.errors import ArtifactDamaged, ArtifactMissing, RemoteDamaged, RemoteUnavailable
from storage.files import (
    canonical_json,
    checksums,
    files_below,
    sha256_text,
    sweep_temporaries,
    sync,
    sync_tree,
    write_whole,
)
from storage.layout import Layout
from storage.locks import locked
from storage.recorded_files import differences
from storage.remote_answers import RemoteAnswers

logger = logging.getLogger("mapet.storage")
BUILDING = "building.json"  # in an unfinished artifact: what concerns its building and not what is built
_ADDED = "not part of the artifact"


def damage(artifact: Artifact) -> list[str]:
    """Compare every file with its checksum; one sentence per missing, changed or unexpected file. Reads all bytes."""
    # A file browser's .DS_Store beside the demo's pictures harms nobody; anything else was never published.
    found = {name: words for name, words in _differences(artifact).items() if words != _ADDED or "/." not in f"/{name}"}
    return [f"{artifact.path / name}: {words}" for name, words in found.items()]


def _differences(artifact: Artifact) -> dict[str, str]:
    added = [name for name in files_below(artifact.path) if name not in artifact.files and name != RECORD]
    return {**differences(artifact.path, artifact.files), **dict.fromkeys(added, _ADDED)}


def read_intact(path: Path, *stages: str, remedy: str) -> Artifact:
    """Read an artifact that somebody names and check every byte; the message about a wrong one ends in `remedy`.

    Raises:
        ArtifactMissing: there is no artifact, or one of another stage than `stages`.
        ArtifactDamaged: a file is not what was published.
    """
    artifact = read_artifact(path.expanduser())
    if artifact.stage not in stages:
        raise ArtifactMissing(f"{path}: an artifact of {artifact.stage}, expected one of {' or '.join(stages)}")
    require_intact(artifact, remedy=remedy)
    return artifact


def require_intact(artifact: Artifact, *, remedy: str) -> None:
    """Raise ArtifactDamaged, whose message ends in `remedy`, when a file is not what was published."""
    if problems := damage(artifact):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ArtifactDamaged(f"{problems[0]}{more}; {remedy}")


def find_artifact(layout: Layout, recipe: Recipe) -> Artifact:
    """Find the artifact that `recipe` describes and compare every byte of it with its checksum.

    Raises:
        ArtifactMissing: it was never finished.
        ArtifactDamaged: it is there but not what was published.
    """
    artifact = read_artifact(layout.artifact(recipe.stage, recipe.fingerprint))
    require_intact(artifact, remedy="the stage will rebuild it")
    return artifact


@dataclass(frozen=True)
class Built:
    """What a stage says of the content it has just written."""

    summary: Mapping[str, Any]
    notes: Mapping[str, Any]


def build_artifact(
    layout: Layout, recipe: Recipe, build: Callable[[Path], Built], answers: RemoteAnswers | None = None
) -> tuple[Artifact, bool]:
    """Find the artifact, or build and publish it; returns it and whether it was already there.

    `build(folder)` fills a folder that may hold the verified beginnings of a killed run. Two processes that want the
    same artifact build it once: the second waits for the first and finds the result. The lock is the kernel's, so it
    dies with its holder.

    A remote has copies: an artifact that is there counts as found, one that is there and damaged is built and uploaded
    again, and one that is here and not there is uploaded, now or by a later run. A remote that does not answer stops
    nothing that is here or has begun; only a run that would have to build before it has answered once is refused, as it
    may have what is missing. `answers`: what the run knows of the remote.

    Raises:
        RemoteUnavailable: the remote does not answer, has not answered in this run, and the artifact is not here.
    """
    answers = answers or RemoteAnswers()

    def busy() -> None:
        logger.info("%s: another run is building %s; waiting for it", recipe.stage, recipe.fingerprint)

    with locked(layout.lock(recipe.stage, recipe.fingerprint), busy=busy):
        try:
            return _copied(layout, find_artifact(layout, recipe), answers), True
        except ArtifactMissing:
            pass
        except ArtifactDamaged as error:
            logger.warning("%s: %s", recipe.stage, error)
            _demote(layout, recipe)
        try:
            if artifact := _fetch(layout, recipe, answers):
                return artifact, True
        except RemoteDamaged as error:
            logger.warning("%s: %s; it is made anew, here and there", recipe.stage, error)
            return _copied(layout, _build(layout, recipe, build), answers, anew=True), False
        return _copied(layout, _build(layout, recipe, build), answers), False


def _build(layout: Layout, recipe: Recipe, build: Callable[[Path], Built]) -> Artifact:
    wanted = layout.artifact(recipe.stage, recipe.fingerprint)
    logger.info("%s: building, %s is not there", recipe.stage, wanted)
    partial = layout.partial(recipe.stage, recipe.fingerprint)
    partial.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(partial)
    return _publish(layout, recipe, build(partial))


@contextmanager
def beginnings(layout: Layout, recipe: Recipe) -> Iterator[Path | None]:
    """Hold the folder of an unfinished artifact, to leave finished parts of it for whoever builds it.

    Yields None where nothing is to be left: it is there, here or on the remote, or another run is at it.
    """
    with ExitStack() as held:
        try:
            held.enter_context(locked(layout.lock(recipe.stage, recipe.fingerprint), busy=_leave_it))
        except _Busy:
            yield None
            return
        if is_published(layout, recipe):
            yield None
            return
        partial = layout.partial(recipe.stage, recipe.fingerprint)
        partial.mkdir(parents=True, exist_ok=True)
        sweep_temporaries(partial)
        yield partial


class _Busy(Exception):
    """Another run holds a lock; never leaves this module."""


def _leave_it() -> None:
    raise _Busy


def is_published(layout: Layout, recipe: Recipe) -> bool:
    """Tell whether an artifact is there, here or on the remote, by its records alone."""
    try:
        read_artifact(layout.artifact(recipe.stage, recipe.fingerprint))
    except (ArtifactMissing, ArtifactDamaged):
        try:
            return layout.remote is not None and layout.remote.has(recipe.stage, recipe.fingerprint)
        except RemoteUnavailable:
            return False
    return True


def _copied(layout: Layout, artifact: Artifact, answers: RemoteAnswers, *, anew: bool = False) -> Artifact:
    """Copy the artifact to the remote, if there is one that takes it now."""
    if layout.remote is None or not answers.worth_a_try:
        return artifact
    try:
        layout.remote.publish(artifact, anew=anew)
        answers.came()
    except RemoteDamaged as error:
        logger.warning("%s: %s; %s is complete, a later run uploads it again", artifact.stage, error, artifact.path)
    except RemoteUnavailable as error:
        answers.failed(error)
    return artifact


def _fetch(layout: Layout, recipe: Recipe, answers: RemoteAnswers) -> Artifact | None:
    """Download the artifact if the remote has it; here too it is whole or absent."""
    folder = layout.download(recipe.stage, recipe.fingerprint)
    if layout.remote is None:
        return None
    try:
        found = layout.remote.fetch(recipe.stage, recipe.fingerprint, folder)
        answers.came()
    except RemoteDamaged:
        answers.came()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except RemoteUnavailable as error:
        if not answers.ever:
            raise RemoteUnavailable(
                f"{error}. {recipe.stage} {recipe.fingerprint} is not on this disk, and may be there; without an "
                "object store (MAPET_REMOTE_ROOT) it would be built"
            ) from error
        answers.failed(error)
        return None
    if not found:
        return None
    sync_tree(folder)
    artifact = _put_in_place(folder, layout.artifact(recipe.stage, recipe.fingerprint))
    shutil.rmtree(layout.partial(recipe.stage, recipe.fingerprint), ignore_errors=True)  # beginnings of the same
    return artifact


def list_artifacts(layout: Layout, stage: str) -> list[Artifact]:
    """List the published artifacts of a stage whose records are readable, newest first."""
    artifacts = []
    for path in layout.stage(stage).glob(f"*/{RECORD}"):
        try:
            artifacts.append(read_artifact(path.parent))
        except (ArtifactMissing, ArtifactDamaged):
            continue
    return sorted(artifacts, key=lambda artifact: (artifact.path / RECORD).stat().st_mtime, reverse=True)


def _publish(layout: Layout, recipe: Recipe, built: Built) -> Artifact:
    partial = layout.partial(recipe.stage, recipe.fingerprint)
    path = layout.artifact(recipe.stage, recipe.fingerprint)
    sweep_temporaries(partial)
    (partial / RECORD).unlink(missing_ok=True)
    files = checksums(partial, [name for name in files_below(partial) if name != BUILDING])
    record = {
        "stage": recipe.stage,
        "fingerprint": recipe.fingerprint,
        "digest": sha256_text(canonical_json({name: entry["sha256"] for name, entry in files.items()})),
        "recipe": recipe.definition,
        "files": files,
        "summary": built.summary,
        "notes": built.notes,
    }
    sync_tree(partial)
    write_whole(partial / RECORD, render_record(record).encode())
    (partial / BUILDING).unlink(missing_ok=True)  # last: a publication that is killed is begun again
    return _put_in_place(partial, path)


def _put_in_place(folder: Path, path: Path) -> Artifact:
    shutil.rmtree(path, ignore_errors=True)  # a folder without a record: never finished, or its record was deleted
    os.rename(folder, path)
    sync(path.parent)
    return read_artifact(path)


def _demote(layout: Layout, recipe: Recipe) -> None:
    """Make a damaged artifact an unfinished one: its intact files stay, so only what is damaged is made again."""
    path = layout.artifact(recipe.stage, recipe.fingerprint)
    partial = layout.partial(recipe.stage, recipe.fingerprint)
    shutil.rmtree(partial, ignore_errors=True)
    os.rename(path, partial)
    try:
        artifact = read_artifact(partial)
    except ArtifactDamaged:
        shutil.rmtree(partial)  # without a record nothing says which files are good
        return
    for name in _differences(artifact).keys() & files_below(partial):
        (partial / name).unlink()
    (partial / RECORD).unlink()
