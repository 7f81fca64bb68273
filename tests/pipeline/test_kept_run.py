"""The id of a run beside the beginnings of an artifact, there or not, whole or not."""

import shutil
from pathlib import Path

import pytest

from pipeline.engine.kept_run import KeptRun
from storage.artifact import BUILDING
from storage.remote_folder import RemoteFolder


@pytest.fixture
def kept(tmp_path: Path) -> KeptRun:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    return KeptRun(tmp_path / "here", RemoteFolder(f"file://{tmp_path}/there"))


def test_an_id_is_kept_here_and_there_and_the_own_one_comes_first(kept: KeptRun, tmp_path: Path) -> None:
    assert list(kept.ids()) == []
    kept.keep("one")
    KeptRun(tmp_path / "here").keep("two")
    assert list(kept.ids()) == ["two", "one"]
    shutil.rmtree(kept.folder)
    assert list(kept.ids()) == ["one"], "of another machine"


def test_nothing_is_kept_of_an_artifact_that_was_published_meanwhile(kept: KeptRun, tmp_path: Path) -> None:
    kept.folder.rmdir()
    kept.keep("one")
    assert not list((tmp_path / "there").iterdir())
    assert not kept.folder.exists()


GARBLED = [b"", b"\xff\x00", b"[1]", b'"x"', b"null", b'{"tracking_run": 7}', b'{"tracking_run": ""}']


@pytest.mark.parametrize("content", GARBLED)
def test_a_garbled_id_is_passed_over_said_and_replaced(
    content: bytes, kept: KeptRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder / BUILDING).write_bytes(content)
    assert list(kept.ids()) == []
    assert [one.message.partition(": expected the id")[0] for one in caplog.records] == [
        f"{tmp_path}/here/{BUILDING}",
        f"file://{tmp_path}/there/{BUILDING}",
    ]
    kept.keep("one")
    assert list(kept.ids()) == ["one", "one"]


def test_an_id_that_can_be_neither_read_nor_written_is_said(kept: KeptRun, caplog: pytest.LogCaptureFixture) -> None:
    (kept.folder / BUILDING).mkdir()
    away = KeptRun(kept.folder, RemoteFolder("file:///proc/nowhere"))
    assert list(away.ids()) == []
    away.keep("one")
    shutil.rmtree(kept.folder / BUILDING)
    away.keep("one")
    assert [one.message.partition(":")[0] for one in caplog.records][-2:] == [
        "if this is stopped, it may go on in another run of the tracker"
    ] * 2
    assert list(KeptRun(kept.folder).ids()) == ["one"]
