"""The whole build on real photographs: the same tokens whatever the layout, the workers, and how often it is killed."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.chains.graph import FlowResult
from pipeline.configuration.overrides import apply_overrides
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from storage.artifact import find_artifact
from storage.errors import ArtifactDamaged
from storage.feature_sample import FeatureSample
from storage.image_index import ImageIndex
from storage.image_records import read_image_records
from storage.layout import Layout
from storage.token_store import NO_TOKEN, TokenStore
from tests.builds import as_parquet, as_tars, build, build_in_process, make_photos, small_config, tokens_of
from tests.forked import server
from tests.stages import extract_features, index_images, kclip_build


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "images")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip") / "tiny"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def undisturbed(photos: Path, clip: Path, root: Path) -> FlowResult:
    return build(small_config(photos, clip), root)


def test_tokens_use_the_vocabulary_and_every_image_has_its_own(undisturbed: FlowResult) -> None:
    tokens = tokens_of(undisturbed)
    assert tokens.shape == (72, 16)
    assert len(np.unique(tokens)) == 32, "photographs that all look the same to the encoder would prove nothing"
    assert len(np.unique(tokens, axis=0)) > 40


def test_a_second_build_finds_every_stage(undisturbed: FlowResult, photos: Path, clip: Path, root: Path) -> None:
    again = build(small_config(photos, clip), root)
    assert again.all_cached
    assert [result.artifact for result in again.results] == [result.artifact for result in undisturbed.results]


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_byte(
    workers: int, undisturbed: FlowResult, photos: Path, clip: Path, tmp_path: Path
) -> None:
    other = build(small_config(photos, clip), tmp_path, workers=workers)
    for stage in ("index_images", "extract_features", "fit_codebook", "tokenize_images"):
        assert other[stage].artifact.digest == undisturbed[stage].artifact.digest


def test_the_batch_size_changes_no_byte(undisturbed: FlowResult, photos: Path, clip: Path, tmp_path: Path) -> None:
    settings = Settings(data_root=tmp_path, device="cpu", workers=0, batch_size=7)
    other = kclip_build(small_config(photos, clip), Workspace(settings))
    for stage in ("index_images", "extract_features", "fit_codebook", "tokenize_images"):
        assert other[stage].artifact.digest == undisturbed[stage].artifact.digest


@pytest.mark.parametrize(("kind", "copy"), [("parquet", as_parquet), ("webdataset", as_tars)])
@pytest.mark.parametrize("workers", [0, 3])
def test_a_copy_in_another_layout_gives_the_same_tokens(
    kind: str,
    copy: Callable[[Path, Path], Path],
    workers: int,
    undisturbed: FlowResult,
    photos: Path,
    clip: Path,
    tmp_path: Path,
) -> None:
    layout = copy(photos, tmp_path / "copy")
    other = build(small_config(layout, clip, f"images.kind={kind}"), tmp_path / "root", workers=workers)
    expected = ImageIndex.read(undisturbed["index_images"].artifact.path)
    found = ImageIndex.read(other["index_images"].artifact.path)
    assert found.table.select(["name", "image_id", "split", "label"]).equals(
        expected.table.select(["name", "image_id", "split", "label"])
    )
    assert (tokens_of(other) == tokens_of(undisturbed)).all()


def _shards_done(root: Path) -> int:
    return len(list(root.glob("*/*.partial/units/*.json"))) + 100 * len(list(root.glob("*/*/artifact.json")))


def test_a_build_killed_again_and_again_ends_with_the_same_bytes(
    undisturbed: FlowResult, photos: Path, clip: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(os.getpid())
    progress: list[int] = []
    workers: list[psutil.Process] = []
    for _ in range(40):
        before = _shards_done(tmp_path)
        process = server().Process(target=build_in_process, args=(photos, clip, tmp_path))
        process.start()
        while process.is_alive() and _shards_done(tmp_path) <= before:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.1))  # anywhere in the next shard, a rename, an assembly, an iteration
        if process.is_alive():
            workers += psutil.Process(process.pid).children(recursive=True)
            process.kill()
        process.join()
        progress.append(process.exitcode or 0)
        if process.exitcode == 0:
            break
    assert progress[-1] == 0, f"never finished: {progress}"
    assert progress.count(-signal.SIGKILL) >= 5, f"too few kills to prove anything: {progress}"
    assert workers
    assert psutil.wait_procs(workers, timeout=30)[1] == [], "decoding processes outlived the build that was killed"
    assert not list(tmp_path.glob("*/*.partial"))
    again = build(small_config(photos, clip), tmp_path)
    assert again.all_cached
    for stage in ("index_images", "extract_features", "fit_codebook", "tokenize_images"):
        assert again[stage].artifact.digest == undisturbed[stage].artifact.digest


def test_a_deleted_or_damaged_artifact_is_rebuilt_and_only_it(photos: Path, clip: Path, tmp_path: Path) -> None:
    config = small_config(photos, clip)
    first = build(config, tmp_path)
    for stage in ("index_images", "extract_features", "fit_codebook", "tokenize_images", "report"):
        largest = max(first[stage].artifact.path.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 1
        largest.write_bytes(data)
        second = build(config, tmp_path)
        assert [result.stage for result in second.results if not result.cached] == [stage]
        if stage != "report":  # which tells when its stages were built
            assert second[stage].artifact.digest == first[stage].artifact.digest


def test_bad_images_are_marked_and_move_no_row(undisturbed: FlowResult, clip: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    bad = {
        "train/bloom/0000.jpg": b"",
        "train/bloom/0029.jpg": b"<html>not found</html>",
        "val/roof/0005.jpg": (photos / "val/roof/0005.jpg").read_bytes()[:-200],
    }
    for name, data in bad.items():
        (photos / name).write_bytes(data)
    made = build(small_config(photos, clip), tmp_path / "root")
    index = ImageIndex.read(made["index_images"].artifact.path)
    store = TokenStore(made["tokenize_images"].artifact.path)
    tokens, good = store.load(), tokens_of(undisturbed)
    rows = {index.name(row): row for row in range(len(index))}
    bad_rows = [rows[name] for name in bad]
    assert (tokens[bad_rows] == NO_TOKEN).all()
    assert store.status[bad_rows].tolist() == [2, 3, 4]
    assert np.count_nonzero(store.status) == 3
    records = read_image_records(made["tokenize_images"].artifact.path).to_pylist()
    assert all(records[row]["reason"] for row in bad_rows)
    sample = FeatureSample(made["extract_features"].artifact.path)
    assert not set(bad_rows) & set(sample.rows.tolist())
    assert tokens.shape == good.shape


def test_one_bad_image_changes_no_token_of_the_others_given_the_same_codebook(
    undisturbed: FlowResult, photos: Path, clip: Path, tmp_path: Path
) -> None:
    broken = make_photos(tmp_path / "photos")
    (broken / "val/roof/0000.jpg").write_bytes(b"")  # k-means samples the train split: the codebook stays
    made = build(small_config(broken, clip), tmp_path / "root")
    index = ImageIndex.read(made["index_images"].artifact.path)
    kept = [row for row in range(len(index)) if index.name(row) != "val/roof/0000.jpg"]
    assert (tokens_of(made)[kept] == tokens_of(undisturbed)[kept]).all()


def test_too_many_bad_images_stop_the_build_and_raising_the_limit_goes_on(clip: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=8, val=2)
    for path in sorted((photos / "train" / "bloom").iterdir())[:3]:
        path.write_bytes(b"no image")
    config = small_config(photos, clip, "decoding.max_bad_images=2")
    with pytest.raises(PipelineError, match=r"3 of the \d+ images read so far are bad, 2 are allowed"):
        build(config, tmp_path / "root")
    assert build(apply_overrides(config, ["decoding.max_bad_images=3"]), tmp_path / "root")["report"]


def test_a_cached_artifact_is_held_to_the_policy_of_the_run_that_finds_it(clip: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=8, val=2)
    (photos / "train/roof/0003.jpg").write_bytes(b"no image")
    lax = small_config(photos, clip)
    assert not build(lax, tmp_path / "root").all_cached
    for policy in ("decoding.on_bad_image=fail", "decoding.max_bad_images=0"):
        with pytest.raises(PipelineError, match="has 1 bad images, this run allows 0"):
            build(apply_overrides(lax, [policy]), tmp_path / "root")
    assert build(lax, tmp_path / "root").all_cached


@pytest.mark.parametrize("workers", [0, 2])
def test_on_bad_image_fail_stops_at_the_first_with_its_name(workers: int, clip: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=8, val=2)
    (photos / "train/roof/0003.jpg").write_bytes(b"no image")
    with pytest.raises(PipelineError, match=r"^train/roof/0003\.jpg: .*decoding\.on_bad_image=mark$"):
        build(small_config(photos, clip, "decoding.on_bad_image=fail"), tmp_path / "root", workers=workers)


def test_a_file_that_changed_after_it_was_indexed_stops_the_build(
    undisturbed: FlowResult, photos: Path, clip: Path, tmp_path: Path
) -> None:
    changing = make_photos(tmp_path / "photos", train=8, val=2)
    config = small_config(changing, clip)
    workspace = Workspace(Settings(data_root=tmp_path / "root", device="cpu", workers=0, batch_size=4))
    images = index_images(config.images, workspace=workspace).artifact
    path = changing / "train/roof/0003.jpg"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(PipelineError, match="the data set changed"):
        extract_features(
            config.features,
            images=images,
            source=config.images,
            decoding=config.decoding,
            encoder=config.clip,
            workspace=workspace,
        )


def test_keeping_all_features_gives_the_same_codebook(
    undisturbed: FlowResult, photos: Path, clip: Path, tmp_path: Path
) -> None:
    made = build(small_config(photos, clip, "features.keep=all"), tmp_path)
    kept, sampled = (one["extract_features"].artifact for one in (made, undisturbed))
    assert kept.bytes > sampled.bytes
    assert made["fit_codebook"].artifact.digest == undisturbed["fit_codebook"].artifact.digest


def test_a_split_that_is_not_there_is_named(photos: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"features\.splits: .* no split 'test'; it has train \(60\), val \(12\)"):
        build(small_config(photos, clip, 'features.splits=["test"]'), tmp_path)


def test_fewer_features_than_centroids_say_what_to_do(photos: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"codebook\.vocabulary=500: .* gives 480 features to cluster; lower it"):
        build(small_config(photos, clip, "codebook.vocabulary=500"), tmp_path)


def test_a_read_only_look_at_a_damaged_artifact_says_which_file(photos: Path, clip: Path, tmp_path: Path) -> None:
    artifact = build(small_config(photos, clip), tmp_path)["fit_codebook"].artifact
    (artifact.path / "centroids.npy").write_bytes(b"")
    with pytest.raises(ArtifactDamaged, match=r"centroids\.npy: expected \d+ bytes, found 0"):
        find_artifact(Layout(tmp_path), artifact.recipe)
