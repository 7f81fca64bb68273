from pathlib import Path

import pytest

from pipeline.chains.plan import plan, total_words
from pipeline.chains.unused_options import notes_on_unused
from pipeline.commands.verify import verify_artifact, verify_below, verify_source
from pipeline.configuration.overrides import apply_overrides
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.disk_space import readable_bytes, require_space
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from storage.errors import ArtifactMissing
from tests.builds import build, make_photos, small_config
from tests.commands import mapet
from tests.stages import index_images


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_root=tmp_path / "data", device="cpu", workers=0, batch_size=4)


def states(config: object, settings: Settings) -> dict[str, str]:
    return {stage.stage: stage.state for stage in plan("kclip-build", config, settings)}  # type: ignore[arg-type]


def test_the_plan_says_what_is_cached_what_runs_and_why(tmp_path: Path, settings: Settings) -> None:
    config = small_config(make_photos(tmp_path / "photos", train=8, val=2), tmp_path / "clip")
    assert states(config, settings) == {
        "index_images": "run",
        "extract_features": "after",
        "fit_codebook": "after",
        "tokenize_images": "after",
        "report": "after",
    }
    assert not settings.layout.root.exists(), "a plan writes nothing"
    made = build(config, settings.layout.root)
    assert set(states(config, settings).values()) == {"cached"}
    changes = (
        "pixels.patch_size=32",
        "vqkd.image_size=64",
        "fit_vqkd.flip=0.1",
        "dalle.image_size=64",
        "demo_clip.epochs=2",
    )
    for change in changes:
        changed, name = apply_overrides(config, [change]), change.partition("=")[0]
        assert list(notes_on_unused(changed, [name]))
        assert set(states(changed, settings).values()) == {"cached"}, "what is said not to be used is not"
    smaller = apply_overrides(config, ["codebook.vocabulary=4"])
    assert not list(notes_on_unused(smaller, ["codebook.vocabulary"]))
    stages = {stage.stage: stage for stage in plan("kclip-build", smaller, settings)}
    assert stages["extract_features"].state == "cached"
    assert stages["fit_codebook"].state == "run"
    assert "options.vocabulary 32 -> 4" in stages["fit_codebook"].reason
    assert stages["tokenize_images"].state == "after"
    (made["fit_codebook"].artifact.path / "sizes.npy").unlink()
    damaged = {stage.stage: stage for stage in plan("kclip-build", config, settings)}["fit_codebook"]
    assert (damaged.state, "sizes.npy: missing" in damaged.reason) == ("run", True)


def test_a_plan_that_cannot_go_on_says_why(tmp_path: Path, settings: Settings) -> None:
    photos = make_photos(tmp_path / "photos", train=2, val=1)
    build_first = small_config(photos, tmp_path / "clip", "codebook.vocabulary=4")
    build(build_first, settings.layout.root)
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    config = apply_overrides(build_first, [f"clip.pretrained={tmp_path / 'broken.pt'}"])
    stages = {stage.stage: stage for stage in plan("kclip-build", config, settings)}
    assert stages["extract_features"].state == "cannot"
    assert "broken.pt" in stages["extract_features"].reason


def test_a_plan_counts_images_disk_and_hours(tmp_path: Path, settings: Settings) -> None:
    photos = make_photos(tmp_path / "photos", train=8, val=2)
    plain = ("clip.dilate_last_stage=false", "features.sample_fraction=0.02")
    config = small_config(photos, tmp_path / "clip", "clip.model=RN50x64-quickgelu", *plain)
    planned = plan("kclip-build", config, settings)
    features, tokens = (stage.cost for stage in planned if stage.stage in ("extract_features", "tokenize_images"))
    assert features is not None
    assert tokens is not None
    assert (features.images, tokens.images) == (16, 20)
    assert features.disk == round(16 * 196 * 0.02) * 4096 * 2
    assert tokens.disk == 20 * 196 * 2
    assert features.device_hours == pytest.approx(16 / 164 / 3600)
    assert tokens.words == "20 images, 7.8 kB of disk, 0 seconds of 1 x RTX 4090, as timm published"
    assert total_words(planned).startswith("5 stages to run, 0 of them trainings: ")


def test_a_full_disk_is_noticed_before_work_starts(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "there" / "yet", 1, "nothing much")
    with pytest.raises(PipelineError, match=r"every feature needs 1\.10 EB|every feature needs \d+\.\d+ TB of disk"):
        require_space(tmp_path, 10**18, "every feature")


def test_bytes_are_readable() -> None:
    assert [readable_bytes(n) for n in (12, 1234, 41.1e9, 2.06e12)] == ["12 bytes", "1.2 kB", "41.1 GB", "2.06 TB"]


def test_verify_finds_the_damaged_file_and_says_which(tmp_path: Path, settings: Settings) -> None:
    made = build(small_config(make_photos(tmp_path / "photos", train=8, val=2), tmp_path / "clip"), tmp_path / "data")
    verdicts = list(verify_below(tmp_path / "data"))
    assert len(verdicts) == 5
    assert not any(verdict.problems for verdict in verdicts)
    tokens = made["tokenize_images"].artifact.path
    shard = next(path for path in (tokens / "tokens.zarr" / "tokens" / "c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[3] ^= 4
    shard.write_bytes(data)
    [problem] = verify_artifact(tokens).problems
    assert problem == f"{shard}: the bytes changed (SHA-256 differs)"
    assert sum(bool(verdict.problems) for verdict in verify_below(tmp_path / "data")) == 1


def test_verifying_a_folder_without_artifacts_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="no artifact here"):
        list(verify_below(tmp_path))


def test_notes_are_no_damage_and_what_was_understood_is_always_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in (make_photos(tmp_path / "made", train=4, val=0) / "train/bloom").iterdir():
        path.rename(photos / path.name)
    (photos / "notes.txt").write_text("x")
    understood = "understood as images: 4; splits: train 4; classes: none; without a label: 4; left out: 1 .txt"
    words = (
        "tokenizer=pixels",
        "codebook.vocabulary=64",
        f"images.path={photos}",
        "settings.workers=0",
        f"settings.data_root={tmp_path / 'data'}",
    )
    said = [mapet(tmp_path / command, command, "folder", *words) for command in ("verify", "plan")]
    assert [one.code for one in said] == [0, 0]
    assert all(understood in one.out + one.err for one in said)
    assert said[0].out.startswith("ok ")
    caplog.set_level("INFO", "mapet.stages")
    options = ImageSourceOptions(path=str(photos))
    for _ in range(2):  # built, and cached
        index_images(options, workspace=Workspace(Settings(data_root=tmp_path / "data")))
    assert sum(understood in record.getMessage() for record in caplog.records) == 2
    again = mapet(tmp_path / "again", "plan", "folder", *words)
    assert (again.out + again.err).count(understood) == 1


def test_verifying_a_source_names_every_bad_image_with_its_reason(tmp_path: Path, settings: Settings) -> None:
    photos = make_photos(tmp_path / "photos", train=8, val=2)
    (photos / "train/bloom/0001.jpg").write_bytes(b"")
    (photos / "val/roof/0000.jpg").write_bytes(b"text")
    verdict = verify_source(small_config(photos, tmp_path / "clip"), settings)
    assert verdict.checked == "20 images"
    assert [problem.split(":")[0] for problem in verdict.problems] == ["train/bloom/0001.jpg", "val/roof/0000.jpg"]
