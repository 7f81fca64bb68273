import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.artifact import Built, Recipe, build_artifact, damage, find_artifact, read_artifact
from storage.errors import ArtifactDamaged, ArtifactMissing
from storage.layout import Layout

RECIPE = Recipe("stage", 1, {"size": 3}, {"input": "0" * 64})


def write_two_files(folder: Path) -> Built:
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "a.bin").write_bytes(b"first")
    (folder / "deep" / "b.bin").write_bytes(b"second")
    return Built({"files": 2}, {"seconds": 1.5})


def refuse(folder: Path) -> Built:
    raise AssertionError("built although it was there")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_an_artifact_is_built_once_and_then_found(layout: Layout) -> None:
    built, cached = build_artifact(layout, RECIPE, write_two_files)
    found, found_cached = build_artifact(layout, RECIPE, refuse)
    assert (cached, found_cached) == (False, True)
    assert found == built
    assert found.summary == {"files": 2}
    assert set(found.files) == {"a.bin", "deep/b.bin"}


def test_a_build_that_fails_publishes_nothing_and_keeps_its_beginnings(layout: Layout) -> None:
    def fail(folder: Path) -> Built:
        (folder / "begun").write_text("half")
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        build_artifact(layout, RECIPE, fail)
    with pytest.raises(ArtifactMissing):
        find_artifact(layout, RECIPE)

    def go_on(folder: Path) -> Built:
        assert (folder / "begun").read_text() == "half"
        return write_two_files(folder)

    assert not build_artifact(layout, RECIPE, go_on)[1]


def test_temporary_files_of_a_killed_writer_are_not_published(layout: Layout) -> None:
    def leave_litter(folder: Path) -> Built:
        (folder / "x.npy.4711.tmp").write_text("half")
        (folder / "0.abc.partial").write_text("half")
        return write_two_files(folder)

    assert set(build_artifact(layout, RECIPE, leave_litter)[0].files) == {"a.bin", "deep/b.bin"}


@pytest.mark.parametrize("name", ["a.bin", "deep/b.bin", "artifact.json"])
def test_every_flipped_byte_is_found(layout: Layout, name: str) -> None:
    artifact, _ = build_artifact(layout, RECIPE, write_two_files)
    path = artifact.path / name
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        with pytest.raises((ArtifactDamaged, ArtifactMissing)):
            find_artifact(layout, RECIPE)
    path.write_bytes(whole)
    assert find_artifact(layout, RECIPE) == artifact


def test_missing_shortened_and_foreign_files_are_named(layout: Layout) -> None:
    artifact, _ = build_artifact(layout, RECIPE, write_two_files)
    (artifact.path / "a.bin").unlink()
    (artifact.path / "deep" / "b.bin").write_bytes(b"sec")
    (artifact.path / "foreign").touch()
    (artifact.path / ".DS_Store").touch()
    problems = damage(artifact)
    assert [problem.split(": ")[1] for problem in problems] == [
        "missing",
        "expected 6 bytes, found 3",
        "not part of the artifact",
    ]


def test_a_damaged_artifact_is_rebuilt_from_its_intact_files(layout: Layout) -> None:
    artifact, _ = build_artifact(layout, RECIPE, write_two_files)
    (artifact.path / "a.bin").write_bytes(b"FIRST")

    def mend(folder: Path) -> Built:
        assert not (folder / "a.bin").exists(), "the damaged file must not be trusted"
        assert (folder / "deep" / "b.bin").read_bytes() == b"second"
        return write_two_files(folder)

    mended, cached = build_artifact(layout, RECIPE, mend)
    assert not cached
    assert mended.digest == artifact.digest


def test_an_artifact_whose_record_was_deleted_is_rebuilt(layout: Layout) -> None:
    artifact, _ = build_artifact(layout, RECIPE, write_two_files)
    (artifact.path / "artifact.json").unlink()
    assert build_artifact(layout, RECIPE, write_two_files)[0].digest == artifact.digest


def test_the_digest_depends_on_the_content_and_not_on_how_it_was_made(layout: Layout) -> None:
    first, _ = build_artifact(layout, RECIPE, write_two_files)

    def slower(folder: Path) -> Built:
        return Built({"files": 2}, write_two_files(folder).notes | {"seconds": 99})

    other, _ = build_artifact(layout, Recipe("stage", 2, {"size": 3}), slower)
    assert first.digest == other.digest
    assert first.fingerprint != other.fingerprint


def count_and_write(folder: Path) -> Built:
    with (folder.parent / "builds.log").open("a") as log:
        log.write("built\n")
    time.sleep(0.3)
    return write_two_files(folder)


def build_in_process(root: Path) -> None:
    build_artifact(Layout(root), RECIPE, count_and_write)


def test_processes_that_want_the_same_artifact_build_it_once(tmp_path: Path) -> None:
    processes = [multiprocessing.Process(target=build_in_process, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "stage" / "builds.log").read_text() == "built\n"


def die_while_building(root: Path) -> None:
    def build(folder: Path) -> Built:
        (folder / "half").write_text("half")
        os.kill(os.getpid(), 9)
        raise AssertionError

    build_artifact(Layout(root), RECIPE, build)


def test_the_lock_of_a_killed_builder_is_free(tmp_path: Path) -> None:
    process = multiprocessing.Process(target=die_while_building, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -9

    def build(folder: Path) -> Built:
        (folder / "half").unlink()
        return write_two_files(folder)

    assert not build_artifact(Layout(tmp_path), RECIPE, build)[1]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_the_fingerprint_ignores_the_order_of_options_and_nothing_else(options: dict[str, object]) -> None:
    same = Recipe("s", 1, dict(reversed(list(options.items()))))
    assert Recipe("s", 1, options).fingerprint == same.fingerprint
    assert Recipe("s", 1, {**options, "another option": 1}).fingerprint != same.fingerprint
    assert Recipe("s", 2, options).fingerprint != same.fingerprint
    assert Recipe("s", 1, options, {"input": "1"}).fingerprint != same.fingerprint


def test_the_record_says_what_made_the_artifact(layout: Layout) -> None:
    artifact, _ = build_artifact(layout, RECIPE, write_two_files)
    record = json.loads((artifact.path / "artifact.json").read_text())
    assert record["recipe"] == {"stage": "stage", "version": 1, "options": {"size": 3}, "inputs": {"input": "0" * 64}}
    assert read_artifact(artifact.path) == artifact
