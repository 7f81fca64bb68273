"""Artifacts on an object store: a real S3 server over HTTP, and a file system that breaks where it is told to."""

import json
import logging
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from storage.artifact import Built, Recipe, build_artifact, find_artifact
from storage.artifact_record import RECORD, read_artifact, render_record
from storage.errors import ArtifactMissing, RemoteAddressInvalid, RemoteUnavailable
from storage.layout import Layout
from storage.remote_answers import RemoteAnswers
from storage.remote_folder import RemoteFolder
from tests.object_store import BUCKET, BreakingFiles, contents, host, s3_files, s3_server

RECIPE = Recipe("stage", 1, {"size": 3})
LARGE = 9 << 20  # more than what is read back


@pytest.fixture
def breaking() -> Iterator[str]:
    BreakingFiles.reset()
    yield "breaking://store/prefix"
    BreakingFiles.reset()


def write_files(folder: Path) -> Built:
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "a.bin").write_bytes(b"first")
    (folder / "deep" / "ü b#1.bin").write_bytes(b"second")
    (folder / "empty").touch()
    return Built({"files": 3}, {"seconds": 1.5})


def write_large(folder: Path) -> Built:
    (folder / "large.bin").write_bytes(bytes(range(256)) * (LARGE // 256))
    return Built({}, {})


def refuse(folder: Path) -> Built:
    raise AssertionError("built although it was there")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if one.levelno >= logging.WARNING]


def content_of(files: fsspec.AbstractFileSystem, url: str, name: str) -> str:
    """Return the address of one file of the one artifact there."""
    [path] = [path for path in files.find(url) if path.endswith(f"/{name}")]
    return str(path)


@pytest.mark.parametrize("write", [write_files, write_large])
def test_another_host_finds_what_one_has_built(write: Callable[[Path], Built], s3: str, tmp_path: Path) -> None:
    made, _ = build_artifact(host(tmp_path / "a", s3), RECIPE, write)
    found, cached = build_artifact(host(tmp_path / "b", s3), RECIPE, refuse)
    assert cached
    assert contents(found) == contents(made)
    assert found.path == tmp_path / "b" / "stage" / RECIPE.fingerprint
    assert list((tmp_path / "b" / "stage").iterdir()) == [found.path]


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_any_file_system_of_fsspec_will_do(protocol: str, tmp_path: Path) -> None:
    url = f"{protocol}://{tmp_path}/remote"
    made, _ = build_artifact(host(tmp_path / "a", url), RECIPE, write_files)
    assert contents(build_artifact(host(tmp_path / "b", url), RECIPE, refuse)[0]) == contents(made)
    assert RemoteFolder(url).sizes().keys() >= {f"stage/{RECIPE.fingerprint}/{RECORD}"}


def test_an_upload_that_breaks_at_any_write_shows_nothing_and_the_next_finishes_it(
    breaking: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = ("a.bin", "deep/ü b#1.bin", "empty", RECORD)
    for writes in range(len(files)):
        BreakingFiles.reset()
        BreakingFiles.writes_left = writes
        here, there = host(tmp_path / f"a{writes}", breaking), host(tmp_path / f"b{writes}", breaking)
        caplog.clear()
        built, cached = build_artifact(here, RECIPE, write_files)
        assert not cached
        assert "a later one uploads what is missing there" in caplog.text
        assert there.remote is not None
        assert there.remote.fingerprints("stage") == []
        with pytest.raises(ArtifactMissing):
            find_artifact(there, RECIPE)
        BreakingFiles.writes_left = len(files)  # a half object is sent again, a whole one is not
        assert build_artifact(here, RECIPE, refuse) == (built, True)
        assert there.remote.fingerprints("stage") == [RECIPE.fingerprint]
        assert contents(build_artifact(there, RECIPE, refuse)[0]) == contents(built)


CHILD = """
import sys
from pathlib import Path
from storage.artifact import Built, Recipe, build_artifact
from tests.object_store import host
def write(folder):
    for number in range(60):
        (folder / f"{number:03d}.bin").write_bytes(bytes([number]) * 1000)
    return Built({}, {})
build_artifact(host(Path(sys.argv[1]), sys.argv[2]), Recipe("stage", 1, {"size": 3}), write)
"""


def test_an_upload_that_is_killed_shows_nothing_and_the_next_run_finishes_it(s3: str, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "a"), s3])
    files, deadline = s3_files(), time.monotonic() + 60
    while len(files.find(s3)) < 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.kill()
    assert process.wait() == -signal.SIGKILL
    here, there = host(tmp_path / "a", s3), host(tmp_path / "b", s3)
    assert there.remote is not None
    assert there.remote.fingerprints("stage") == []
    made, cached = build_artifact(here, RECIPE, refuse)
    assert cached
    assert contents(build_artifact(there, RECIPE, refuse)[0]) == contents(made)


@pytest.mark.parametrize(
    ("damaged", "found"),
    [(b"firs", "found 4 bytes"), (b"fIrst", "found 5 bytes, SHA-256 "), (None, "found nothing")],
    ids=["truncated", "flipped", "missing"],
)
def test_a_damaged_object_is_said_built_anew_and_replaced_for_everybody(
    damaged: bytes | None, found: str, s3: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, _ = build_artifact(host(tmp_path / "a", s3), RECIPE, write_files)
    files = s3_files()
    address = content_of(files, s3, "a.bin")
    files.rm_file(address) if damaged is None else files.pipe_file(address, damaged)
    again, cached = build_artifact(host(tmp_path / "b", s3), RECIPE, write_files)
    assert not cached
    [warning] = warnings(caplog)
    assert re.search(rf"s3://.*/a\.bin: expected 5 bytes, SHA-256 \w{{12}}.*{found}.*made anew", warning)
    assert again.digest == made.digest
    assert [path.name for path in (tmp_path / "b" / "stage").iterdir()] == [RECIPE.fingerprint]
    assert contents(build_artifact(host(tmp_path / "c", s3), RECIPE, refuse)[0]) == contents(again)


@pytest.mark.parametrize("damaged", [b"firs", None], ids=["truncated", "missing"])
def test_who_has_the_artifact_puts_a_lost_or_short_object_right(damaged: bytes | None, s3: str, tmp_path: Path) -> None:
    here = host(tmp_path / "a", s3)
    made, _ = build_artifact(here, RECIPE, write_files)
    files = s3_files()
    address = content_of(files, s3, "a.bin")
    files.rm_file(address) if damaged is None else files.pipe_file(address, damaged)
    build_artifact(here, RECIPE, refuse)
    assert contents(build_artifact(host(tmp_path / "b", s3), RECIPE, refuse)[0]) == contents(made)


def test_a_large_object_with_a_flipped_byte_is_replaced_by_what_is_built_anew(s3: str, tmp_path: Path) -> None:
    made, _ = build_artifact(host(tmp_path / "a", s3), RECIPE, write_large)
    files = s3_files()
    files.pipe_file(content_of(files, s3, "large.bin"), bytes(LARGE))
    build_artifact(host(tmp_path / "b", s3), RECIPE, write_large)
    assert contents(build_artifact(host(tmp_path / "c", s3), RECIPE, refuse)[0]) == contents(made)


def test_other_bytes_that_are_built_anew_replace_a_damaged_artifact(s3: str, tmp_path: Path) -> None:
    def other_bytes(folder: Path) -> Built:
        built = write_files(folder)
        (folder / "a.bin").write_bytes(b"FIRST")
        return built

    build_artifact(host(tmp_path / "a", s3), RECIPE, write_files)
    files = s3_files()
    files.rm_file(content_of(files, s3, "a.bin"))
    made, _ = build_artifact(host(tmp_path / "b", s3), RECIPE, other_bytes)
    assert contents(build_artifact(host(tmp_path / "c", s3), RECIPE, refuse)[0]) == contents(made)


def test_what_is_damaged_on_its_way_is_fetched_again_once(breaking: str, tmp_path: Path) -> None:
    made, _ = build_artifact(host(tmp_path / "a", breaking), RECIPE, write_files)
    BreakingFiles.flipped_reads = 1
    assert contents(build_artifact(host(tmp_path / "b", breaking), RECIPE, refuse)[0]) == contents(made)


def test_an_upload_that_arrives_altered_is_not_published(
    breaking: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    BreakingFiles.flipped_writes = 1
    here = host(tmp_path / "a", breaking)
    build_artifact(here, RECIPE, lambda folder: write_large(folder) and write_files(folder))
    assert "after uploading it" in caplog.text
    assert "a later run uploads it again" in caplog.text
    assert here.remote is not None
    assert here.remote.fingerprints("stage") == []
    build_artifact(here, RECIPE, refuse)
    assert here.remote.fingerprints("stage") == [RECIPE.fingerprint]


def test_a_download_that_was_cut_short_goes_on_and_keeps_nothing_of_an_older_one(s3: str, tmp_path: Path) -> None:
    made, _ = build_artifact(host(tmp_path / "a", s3), RECIPE, write_files)
    there = host(tmp_path / "b", s3)
    folder = there.download("stage", RECIPE.fingerprint)
    folder.mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"first")
    (folder / "empty.tmp").write_bytes(b"half")
    (folder / "of an earlier record").touch()
    kept = (folder / "a.bin").stat().st_ino
    found, _ = build_artifact(there, RECIPE, refuse)
    assert contents(found) == contents(made)
    assert (found.path / "a.bin").stat().st_ino == kept


def test_an_artifact_that_is_damaged_here_comes_back_from_the_remote(s3: str, tmp_path: Path) -> None:
    here = host(tmp_path / "a", s3)
    made, _ = build_artifact(here, RECIPE, write_files)
    whole = contents(made)
    (made.path / "a.bin").write_bytes(b"fIrst")
    assert contents(build_artifact(here, RECIPE, refuse)[0]) == whole
    assert [path.name for path in (tmp_path / "a" / "stage").iterdir()] == [RECIPE.fingerprint]


def test_of_two_hosts_with_other_bytes_the_first_record_counts_and_nothing_is_mixed(
    s3: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def other_bytes(folder: Path) -> Built:  # and meanwhile the other host publishes
        build_artifact(host(tmp_path / "b", s3), RECIPE, write_files)
        built = write_files(folder)
        (folder / "a.bin").write_bytes(b"FIRST")
        return built

    with caplog.at_level(logging.WARNING, "mapet.storage"):
        own, _ = build_artifact(host(tmp_path / "a", s3), RECIPE, other_bytes)
    assert "another machine's artifact is there with other bytes" in caplog.text
    assert (own.path / "a.bin").read_bytes() == b"FIRST"
    found, _ = build_artifact(host(tmp_path / "c", s3), RECIPE, refuse)
    assert contents(found) == contents(read_artifact(tmp_path / "b" / "stage" / RECIPE.fingerprint))


def test_a_store_that_knows_no_conditions_is_written_to_all_the_same(breaking: str, tmp_path: Path) -> None:
    BreakingFiles.knows_conditions = False
    made, _ = build_artifact(host(tmp_path / "a", breaking), RECIPE, write_files)
    assert contents(build_artifact(host(tmp_path / "b", breaking), RECIPE, refuse)[0]) == contents(made)


@pytest.mark.parametrize("who", ["who has the artifact", "who builds it anew"])
def test_a_record_that_nobody_can_read_is_written_again(who: str, s3: str, tmp_path: Path) -> None:
    here = host(tmp_path / "a", s3)
    made, _ = build_artifact(here, RECIPE, write_files)
    s3_files().pipe_file(f"{s3}/stage/{RECIPE.fingerprint}/{RECORD}", b'{"digest": "half a')
    if who == "who has the artifact":
        build_artifact(here, RECIPE, refuse)
    else:
        made, cached = build_artifact(host(tmp_path / "b", s3), RECIPE, write_files)
        assert not cached
    assert contents(build_artifact(host(tmp_path / "c", s3), RECIPE, refuse)[0]) == contents(made)


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside"])
def test_a_record_cannot_make_a_download_leave_its_folder(
    name: str, s3: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, _ = build_artifact(host(tmp_path / "a", s3), RECIPE, write_files)
    record = json.loads((made.path / RECORD).read_text())
    del record["checksum"], record["format"]
    record["files"] = {name: record["files"]["a.bin"]}
    s3_files().pipe_file(f"{s3}/stage/{RECIPE.fingerprint}/{RECORD}", render_record(record).encode())
    _, cached = build_artifact(host(tmp_path / "b", s3), RECIPE, write_files)
    assert not cached
    assert "lies outside of its artifact" in caplog.text
    assert not list(tmp_path.rglob("outside"))


def test_a_store_that_is_away_is_said_once_by_a_run_that_needs_nothing_of_it(
    breaking: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, answers = host(tmp_path / "a", breaking), RemoteAnswers()
    recipes = [Recipe("stage", 1, {"size": size}) for size in range(3)]
    for recipe in recipes:
        build_artifact(Layout(here.root), recipe, write_files)
    BreakingFiles.writes_left = 0
    assert all(build_artifact(here, recipe, refuse, answers)[1] for recipe in recipes)
    assert len(warnings(caplog)) == 1
    BreakingFiles.writes_left = float("inf")
    for recipe in recipes:
        build_artifact(here, recipe, refuse, RemoteAnswers())
    assert here.remote is not None
    assert here.remote.fingerprints("stage") == sorted(recipe.fingerprint for recipe in recipes)


def test_a_store_that_dies_in_mid_run_does_not_stop_what_is_still_to_be_built(tmp_path: Path) -> None:
    here, answers = host(tmp_path / "a", f"s3://{BUCKET}/{tmp_path.name}"), RemoteAnswers()
    with s3_server():
        s3_files()
        build_artifact(here, RECIPE, write_files, answers)
    _, cached = build_artifact(here, Recipe("stage", 1, {"size": 4}), write_files, answers)
    assert not cached


def test_a_server_that_is_gone_loses_nothing_and_the_next_run_uploads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"s3://{BUCKET}/{tmp_path.name}"
    here = host(tmp_path / "a", url)
    with s3_server() as port:
        pass  # gone before the stage has ended
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "somebody")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "something-secret")
        environment.setenv("AWS_MAX_ATTEMPTS", "1")
        s3_files()
        made, _ = build_artifact(Layout(here.root), RECIPE, write_files)
        assert build_artifact(here, RECIPE, refuse) == (made, True)
        with pytest.raises(RemoteUnavailable, match="is not on this disk, and may be there"):
            build_artifact(here, Recipe("stage", 1, {"size": 4}), refuse)
    [warning] = warnings(caplog)
    assert "Could not connect" in warning
    assert "a later one uploads what is missing there" in warning
    assert "something-secret" not in warning
    with s3_server(port=port):
        assert build_artifact(here, RECIPE, refuse) == (made, True)
        assert contents(build_artifact(host(tmp_path / "b", url), RECIPE, refuse)[0]) == contents(made)


def test_a_missing_bucket_is_said_before_anything_is_built(s3: str, tmp_path: Path) -> None:
    with pytest.raises(RemoteUnavailable, match=r"^s3://nowhere.*bucket does not exist; check the address"):
        build_artifact(host(tmp_path, "s3://nowhere/prefix"), RECIPE, refuse)


def check_keys(s3_port: int, *, after: bytes) -> None:
    """Make moto refuse keys that it has not given out itself, after so many requests."""
    url, plain = f"http://127.0.0.1:{s3_port}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(url, data=after, headers=plain)).close()


def test_keys_that_are_missing_or_wrong_are_said_before_anything_is_built(
    s3_port: int, s3: str, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("AWS_ACCESS_KEY_ID")
        environment.delenv("AWS_SECRET_ACCESS_KEY")
        s3_files()
        with pytest.raises(RemoteUnavailable, match=r"Unable to locate credentials; check"):
            build_artifact(host(tmp_path, s3), RECIPE, refuse)
    s3_files()
    try:
        check_keys(s3_port, after=b"0")
        with pytest.raises(RemoteUnavailable, match="AWS_SECRET_ACCESS_KEY") as refused:
            build_artifact(host(tmp_path, s3), RECIPE, refuse)
    finally:
        check_keys(s3_port, after=b"inf")
    assert "something-secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["s3://key:hush@bucket/prefix", "simplecache::s3://key:hush@bucket"])
def test_keys_in_an_address_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RemoteAddressInvalid, match="has keys in it") as refused:
        RemoteFolder(url)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("url", ["/data", "s3://", "s4://bucket/prefix", "s3:bucket"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(RemoteAddressInvalid, match="expected the address of an object store"):
        RemoteFolder(url)
