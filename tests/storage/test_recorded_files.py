"""The one way in which files count because of a record that is written after them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.files import sha256_bytes
from storage.recorded_files import RecordedFiles, differences


@pytest.fixture
def several(tmp_path: Path) -> RecordedFiles:
    return RecordedFiles(tmp_path, tmp_path / "records" / "0.json")


def write(recorded: RecordedFiles, *contents: bytes, **fields: int) -> None:
    names = [recorded.only] if recorded.only else [f"part/{number}" for number in range(len(contents))]
    with recorded.write(*names, **fields) as paths:
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)


def test_files_count_once_they_and_their_record_are_written(several: RecordedFiles) -> None:
    assert several.read() is None
    write(several, b"one", b"two", step=3)
    files = {"part/0": sha256_bytes(b"one"), "part/1": sha256_bytes(b"two")}
    assert several.read() == {"files": files, "step": 3}


def test_a_single_file_has_its_record_beside_it(tmp_path: Path) -> None:
    recorded = RecordedFiles.beside(tmp_path / "a.pt")
    write(recorded, b"one", step=3)
    assert json.loads((tmp_path / "a.json").read_text()) == {"bytes": 3, "sha256": sha256_bytes(b"one"), "step": 3}
    assert recorded.read()


def test_a_record_without_a_size_is_one_too(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"one")
    (tmp_path / "a.json").write_text(json.dumps({"sha256": sha256_bytes(b"one")}))  # as decoded tokens had it
    assert RecordedFiles.beside(tmp_path / "a.npy").read()


def test_a_writer_that_is_killed_in_its_files_leaves_what_was_there(several: RecordedFiles) -> None:
    write(several, b"one", b"two")
    with pytest.raises(RuntimeError, match="killed"), several.write("part/0", "part/1"):
        raise RuntimeError("killed")
    assert several.read()
    assert sorted(path.name for path in several.folder.rglob("*") if path.is_file()) == ["0", "0.json", "1"]


@pytest.mark.parametrize("before", [True, False])
def test_files_that_are_cut_off_from_their_record_do_not_count(several: RecordedFiles, before: bool) -> None:
    if before:
        write(several, b"one", b"two")
    with pytest.raises(TypeError):  # from the record, which comes after the files
        write(several, b"one", b"other", step=object())  # type: ignore[arg-type]
    assert (several.folder / "part" / "1").read_bytes() == b"other"
    assert several.read() is None
    write(several, b"one", b"other")
    assert several.read()


def cut_record(recorded: RecordedFiles) -> None:
    recorded.record.write_bytes(recorded.record.read_bytes()[:-20])


def change_a_byte(recorded: RecordedFiles) -> None:
    (recorded.folder / "part" / "1").write_bytes(b"twO")


def cut_a_file(recorded: RecordedFiles) -> None:
    (recorded.folder / "part" / "1").write_bytes(b"tw")


def remove_a_file(recorded: RecordedFiles) -> None:
    (recorded.folder / "part" / "1").unlink()


@pytest.mark.parametrize("damage", [cut_record, change_a_byte, cut_a_file, remove_a_file])
def test_damaged_files_are_absent_and_can_be_written_again(
    several: RecordedFiles, damage: Callable[[RecordedFiles], None]
) -> None:
    write(several, b"one", b"two")
    damage(several)
    assert several.read() is None
    write(several, b"one", b"two")
    assert several.read()


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '"a"', '{"files": []}', '{"files": {"part/0": 1}}', "\0"])
@pytest.mark.parametrize("single", [True, False])
def test_a_record_that_is_any_other_text_is_none(tmp_path: Path, text: str, single: bool) -> None:
    path = tmp_path / "part" / "0"
    recorded = RecordedFiles.beside(path) if single else RecordedFiles(tmp_path, tmp_path / "0.json")
    write(recorded, b"one")
    recorded.record.write_text(text)
    assert recorded.read() is None


def test_other_files_beside_them_do_not_matter(several: RecordedFiles) -> None:
    write(several, b"one", b"two")
    (several.folder / "part" / "2").write_bytes(b"of another record")
    assert several.read()


def test_differences_are_told_in_words_and_by_name(tmp_path: Path) -> None:
    for name in ("same", "longer", "changed"):
        (tmp_path / name).write_bytes(b"one")
    expected = {"bytes": 3, "sha256": sha256_bytes(b"one")}
    (tmp_path / "longer").write_bytes(b"four")
    (tmp_path / "changed").write_bytes(b"onE")
    assert differences(tmp_path, dict.fromkeys(("same", "longer", "changed", "gone"), expected)) == {
        "longer": "expected 3 bytes, found 4",
        "changed": "the bytes changed (SHA-256 differs)",
        "gone": "missing",
    }
