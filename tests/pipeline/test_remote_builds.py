"""Builds and trainings on machines that share an object store and nothing else."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings, load_settings
from pipeline.engine.workspace import Workspace
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.history import HISTORY
from storage.artifact import Artifact
from storage.errors import RemoteAddressInvalid
from storage.remote_folder import RemoteFolder
from tests.builds import make_photos, small_config
from tests.object_store import BreakingFiles, contents
from tests.stages import TokenizedImages, kclip_build
from tests.trainings import begin_pretraining, small_pretraining, steps_on_disk

LONG = ("training.epochs=10", "training.validation_epochs=3")  # 70 steps


@pytest.fixture(scope="module")
def undisturbed(tokenized: TokenizedImages, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return small_pretraining(tokenized, tmp_path_factory.mktemp("undisturbed"), *LONG).artifact


def test_a_second_machine_finds_every_stage_of_a_build_with_the_same_bytes(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(make_photos(tmp_path / "photos"), tmp_path / "clip")
    machine = {"device": "cpu", "workers": 1, "batch_size": 4}  # a worker is forked beside the threads of s3fs
    made = kclip_build(config, Workspace(Settings(data_root=tmp_path / "a", remote_root=s3, **machine)))
    monkeypatch.setenv("MAPET_DATA_ROOT", s3)  # the other way to say it
    monkeypatch.setenv("MAPET_CACHE_ROOT", str(tmp_path / "b"))
    found = kclip_build(config, Workspace(Settings(**machine)))
    assert not any(result.cached for result in made.results)
    assert found.all_cached
    for there, here in zip(made.results, found.results, strict=True):
        assert here.artifact.path.is_relative_to(tmp_path / "b")
        assert contents(here.artifact) == contents(there.artifact)
        assert here.artifact.digest == there.artifact.digest


def test_a_training_that_dies_on_one_machine_goes_on_on_another(
    s3: str, tokenized: TokenizedImages, undisturbed: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    process = begin_pretraining(tokenized, a, tmp_path, *LONG, checkpoint_steps=4, remote_root=s3)
    process.wait_until(lambda: any("step-00000008.json" in name for name in RemoteFolder(s3).sizes()))
    process.kill()
    died_at = steps_on_disk(a)
    with caplog.at_level(logging.INFO, "mapet.training"):
        made = small_pretraining(tokenized, b, *LONG, checkpoint_steps=10_000, remote_root=s3).artifact
    resumed = [int(r.message.split()[4]) for r in caplog.records if r.message.startswith("going on after step")]
    assert len(resumed) == 1
    assert 8 <= resumed[0] <= died_at
    assert (made.path / HISTORY).read_bytes() == (undisturbed.path / HISTORY).read_bytes()
    assert made.digest == undisturbed.digest  # the weights too, to the last bit
    assert not [name for name in RemoteFolder(s3).sizes() if ".partial/" in name], "nobody needs its checkpoints now"
    taken = small_pretraining(tokenized, c, *LONG, remote_root=s3)
    assert taken.cached
    assert contents(taken.artifact) == contents(made)


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Checkpoints, Checkpoints]:
    """Two that train the same on one remote."""
    remote = RemoteFolder(f"file://{tmp_path}/remote/checkpoints")
    return Checkpoints(tmp_path / "a", 2, remote), Checkpoints(tmp_path / "b", 2, remote)


def save(checkpoints: Checkpoints, step: int, word: str = "") -> None:
    checkpoints.save(step, {"step": step, "weight": torch.full((3,), float(step)), "word": word})


def newest(checkpoints: Checkpoints) -> dict[str, Any]:
    checkpoints.fetch()
    state = checkpoints.latest(torch.device("cpu"))
    assert state is not None
    return state


def test_a_machine_that_comes_back_takes_the_checkpoint_of_the_one_that_came_further(
    machines: tuple[Checkpoints, Checkpoints],
) -> None:
    a, b = machines
    save(a, 4)
    assert newest(b)["step"] == 4
    save(b, 20)
    assert newest(a)["step"] == 20
    save(Checkpoints(a.folder, 2), 24)  # of which the remote knows nothing
    assert newest(a)["step"] == 24


def test_a_damaged_checkpoint_of_the_remote_is_passed_over_for_the_one_before(
    machines: tuple[Checkpoints, Checkpoints], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = machines
    save(a, 4)
    save(a, 8)
    payload = tmp_path / "remote" / "checkpoints" / "step-00000008.pt"
    payload.write_bytes(payload.read_bytes()[:-1])
    assert newest(b)["step"] == 4
    assert "step-00000008.pt: damaged; taking the one before" in caplog.text


@pytest.mark.parametrize("record", ["[]", "null", "{}", '{"bytes": 1}', '{"sha256": "0"}', "{"])
def test_a_checkpoint_whose_record_is_any_other_text_is_passed_over(
    machines: tuple[Checkpoints, Checkpoints], tmp_path: Path, record: str
) -> None:
    a, b = machines
    save(a, 4)
    save(a, 8)
    for folder in (a.folder, tmp_path / "remote" / "checkpoints"):
        (folder / "step-00000008.json").write_text(record)
    assert newest(a)["step"] == newest(b)["step"] == 4


def test_the_remote_keeps_as_many_checkpoints_as_the_machine(machines: tuple[Checkpoints, Checkpoints]) -> None:
    a, _ = machines
    for step in range(1, 6):
        save(a, step)
    assert a.remote is not None
    assert set(a.remote.sizes()) == {f"step-0000000{step}.{kind}" for step in (4, 5) for kind in ("pt", "json")}


def test_a_step_that_was_computed_again_replaces_its_checkpoint(machines: tuple[Checkpoints, Checkpoints]) -> None:
    a, b = machines
    save(a, 4, "first")
    save(b, 4, "again")
    assert newest(Checkpoints(a.folder / "elsewhere", 2, a.remote))["word"] == "again"


def test_a_training_goes_on_though_its_checkpoints_do_not_arrive(
    tokenized: TokenizedImages, undisturbed: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    BreakingFiles.reset()
    BreakingFiles.writes_left = 3  # a checkpoint is two
    settings = {"checkpoint_steps": 5, "remote_root": "breaking://store"}
    with caplog.at_level(logging.WARNING):
        assert not small_pretraining(tokenized, tmp_path / "a", *LONG, **settings).cached
    assert "a later one uploads what is missing there" in caplog.text
    assert "the checkpoint of step 65 is on this machine only: breaking://store" in caplog.text
    BreakingFiles.writes_left = float("inf")
    made = small_pretraining(tokenized, tmp_path / "a", *LONG, **settings)
    assert made.cached, "the next run has only to upload it"
    assert made.artifact.digest == undisturbed.digest
    assert small_pretraining(tokenized, tmp_path / "b", *LONG, **settings).cached
    BreakingFiles.reset()


def test_a_store_that_is_away_is_said_once_by_a_build_whose_stages_are_all_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(make_photos(tmp_path / "photos", train=8, val=2), tmp_path / "clip", "codebook.vocabulary=4")
    machine = {"data_root": tmp_path / "a", "device": "cpu", "workers": 0}
    kclip_build(config, Workspace(Settings(**machine)))
    caplog.clear()
    BreakingFiles.reset()
    BreakingFiles.writes_left = 0
    assert kclip_build(config, Workspace(Settings(**machine, remote_root="breaking://store"))).all_cached
    [warning] = [one.message for one in caplog.records if one.levelno >= logging.WARNING]
    assert "goes on with this disk alone" in warning
    BreakingFiles.reset()


def test_an_address_as_data_root_means_a_local_copy_of_its_own(tmp_path: Path) -> None:
    first, second = (Settings(data_root=f"s3://bucket/{name}", cache_root=tmp_path) for name in ("one", "two"))  # type: ignore[arg-type]
    assert first.remote_root == "s3://bucket/one"
    assert first.layout.root.parent == second.layout.root.parent == tmp_path
    assert first.layout.root != second.layout.root
    assert Settings(**first.model_dump()) == first
    assert Settings().layout.remote is None


@pytest.mark.parametrize("name", ["MAPET_DATA_ROOT", "MAPET_REMOTE_ROOT"])
def test_keys_in_an_address_are_refused_and_not_repeated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "s3://key:hush@bucket/prefix")
    with pytest.raises((PipelineError, RemoteAddressInvalid), match="has keys in it") as refused:
        load_settings()
    assert "hush" not in str(refused.value)


def test_no_artifact_names_the_keys(s3: str, tmp_path: Path) -> None:
    config = small_config(make_photos(tmp_path / "photos", train=8, val=2), tmp_path / "clip", "codebook.vocabulary=4")
    settings = Settings(data_root=tmp_path / "a", remote_root=s3, device="cpu", workers=0)
    kclip_build(config, Workspace(settings))
    written = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert written
    assert not any(b"something-secret" in path.read_bytes() for path in written)
