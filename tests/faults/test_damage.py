"""Artifacts that are flipped, cut short, deleted, outdated or dated wrongly: only what is wrong is made again."""

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pipeline.chains.graph import Node
from pipeline.engine.errors import PipelineError
from pipeline.engine.workspace import StageResult
from storage.artifact import RECORD, Artifact, read_artifact
from storage.artifact_record import render_record
from storage.errors import ArtifactDamaged
from tests.builds import build, make_photos, small_config
from tests.faults.chain import TELLS_TIMES, Expected, published, run_chain, wrong_results
from tests.faults.damage import DAMAGES, delete, files_of, flip
from tests.tiny_clip import write_tiny_clip


@pytest.fixture
def root(undisturbed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "data"))


def made_again(root: Path) -> set[tuple[str, str]]:
    """Run the chain; stage and fingerprint of what was not found."""
    result = run_chain(root, workers=0)
    assert not result.failures
    return {(one.stage, one.artifact.fingerprint) for one in result.results if not one.cached}


@pytest.mark.parametrize("turn", range(len(DAMAGES)))
def test_a_damaged_file_in_every_second_artifact_costs_those_artifacts_and_no_other(
    turn: int, root: Path, expected: Expected
) -> None:
    drawn, hurt = random.Random(turn), set()
    for number, artifact in enumerate(published(root)):
        if number % 2 == turn % 2:
            damage = list(DAMAGES.values())[(number // 2 + turn) % len(DAMAGES)]
            damage(drawn.choice(files_of(artifact)), drawn)
            hurt.add((artifact.stage, artifact.fingerprint))
    assert made_again(root) == hurt
    assert wrong_results(root, expected, whole=True) == []


def test_a_record_that_is_damaged_in_any_way_is_never_believed(root: Path, expected: Expected) -> None:
    drawn = random.Random(0)
    hurt = {}
    for number, artifact in enumerate(published(root)):
        if artifact.stage in ("make_demo_images", "train_demo_clip", TELLS_TIMES):
            continue  # the slowest three; a record is a record
        list(DAMAGES.values())[number % len(DAMAGES)](artifact.path / RECORD, drawn)
        hurt[artifact.stage, artifact.fingerprint] = artifact
    assert made_again(root) == hurt.keys()
    assert wrong_results(root, expected, whole=True) == []


def with_other_record(artifact: Artifact, change: Callable[[dict[str, object]], None]) -> None:
    """Write a record whose own checksum is right."""
    fields = ("stage", "fingerprint", "digest", "recipe", "files", "summary", "notes")
    record = {name: getattr(artifact, name) for name in fields}
    change(record)
    (artifact.path / RECORD).write_text(render_record(record))


def test_an_artifact_of_an_older_version_of_its_stage_is_not_taken(
    root: Path, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.stages.fit_codebook import FitCodebook

    before = {(artifact.stage, artifact.fingerprint) for artifact in published(root)}
    monkeypatch.setattr(FitCodebook, "VERSION", FitCodebook.VERSION + 1)  # as the next release would
    again = made_again(root)
    assert {stage for stage, _ in again} == {"fit_codebook"}, "its bytes are the same: what is built on it stays"
    assert not again & before
    monkeypatch.undo()
    assert made_again(root) == set(), "and the older one is still there for the older code"


def test_times_of_files_and_clocks_set_back_or_ahead_change_nothing(root: Path) -> None:
    decade = 10 * 365 * 86_400
    for number, path in enumerate(sorted(root.rglob("*"))):
        shifted = time.time() + (decade if number % 2 else -decade)
        os.utime(path, (shifted, shifted))
    assert made_again(root) == set()


def test_work_that_was_begun_in_the_future_is_gone_on_with(root: Path, expected: Expected) -> None:
    """A clock that was set back: the unfinished artifact is newer than everything that comes after it."""
    [features] = [artifact for artifact in published(root) if artifact.stage == "extract_features"]
    partial = features.path.with_suffix(".partial")
    features.path.rename(partial)
    (partial / RECORD).unlink()
    delete(sorted(partial.glob("units/*.json"))[0])
    ahead = time.time() + 86_400
    for path in partial.rglob("*"):
        os.utime(path, (ahead, ahead))
    kept = sorted(partial.glob("features/*.arrow"))[-1].stat().st_mtime_ns
    assert made_again(root) == {(features.stage, features.fingerprint)}
    assert sorted(features.path.glob("features/*.arrow"))[-1].stat().st_mtime_ns == kept, "this shard was done already"
    assert wrong_results(root, expected, whole=True) == []


@pytest.mark.parametrize("stage", ["extract_features", "fit_codebook", "tokenize_images"])
def test_an_input_that_is_lost_or_damaged_after_its_check_publishes_nothing_wrong(
    stage: str, root: Path, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage is found intact; then the disk takes it away, before the stage that was given it reads it."""
    taker = {"extract_features": "fit_codebook", "fit_codebook": "tokenize_images", "tokenize_images": "pretrain"}[
        stage
    ]
    for artifact in published(root):
        if artifact.stage == taker:
            shutil.rmtree(artifact.path)

    def disturbed(node: Node, make: Callable[[], StageResult]) -> StageResult:
        if node.kind == taker:
            for artifact in published(root):
                if artifact.stage == stage:
                    shutil.rmtree(artifact.path)
        return make()

    from pipeline.engine.settings import Settings
    from pipeline.engine.workspace import Workspace
    from tests.faults.chain import small_chain
    from tests.stages import reproduce

    settings = Settings(data_root=root, device="cpu", workers=0, batch_size=4)
    broken = reproduce(small_chain(), Workspace(settings), disturbed)
    assert broken.failures, "it was not there"
    assert not any("Traceback" in failure.reason for failure in broken.failures)
    assert wrong_results(root, expected) == []
    made_again(root)
    assert wrong_results(root, expected, whole=True) == []


def test_a_flipped_bit_of_an_input_is_found_when_it_is_asked_for_by_name(root: Path) -> None:
    from storage.artifact import read_intact

    [codebook] = [artifact for artifact in published(root) if artifact.stage == "fit_codebook"]
    flip(files_of(codebook)[0], random.Random(3))
    with pytest.raises(ArtifactDamaged, match="do this"):
        read_intact(codebook.path, "fit_codebook", remedy="do this")
    assert read_artifact(codebook.path).digest == codebook.digest, "the record alone cannot know"


def test_weights_with_a_nan_make_no_features_and_the_message_names_where_it_was_met(tmp_path: Path) -> None:
    photos, clip, root = make_photos(tmp_path / "photos", train=4, val=1), tmp_path / "clip", tmp_path / "data"
    write_tiny_clip(clip)
    weights = clip / "open_clip_model.safetensors"
    state = load_file(weights)
    state["visual.conv1.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, weights)
    with pytest.raises(PipelineError, match=r"/0000\.jpg, patch 0: the encoder's feature is not finite"):
        build(small_config(photos, clip), root)
    assert {artifact.stage for artifact in published(root)} == {"index_images"}
    mended = build(small_config(photos, tmp_path / "mended"), root)
    assert {one.stage for one in mended.results if one.cached} == {"index_images"}
