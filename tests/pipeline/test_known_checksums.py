"""Whoever reads an image again gets the bytes that were read first, or one sentence."""

import pickle
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.commands.codebook import write_codebook_pages
from pipeline.commands.verify import verify_source
from pipeline.data.known_checksums import ChecksumSources
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from storage.checksum_file import ChecksumFile
from storage.image_index import ImageIndex
from tests.builds import build, edit, make_photos, small_config
from tests.evaluations import small_evaluation
from tests.pipeline.vqkds import fit, indexed
from tests.stages import TokenizedImages
from tests.trainings import small_pretraining, tokenize_photos

EDITED = "train/roof/0004.jpg"
ANEW = "run again with images.identity=content, which indexes the data set anew by its contents"


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> TokenizedImages:
    """Tokens of photographs, of which one was edited to the same size afterwards."""
    built = tokenize_photos(tmp_path_factory.mktemp("edited"), train=9, val=3)
    edit(Path(built.source.path) / EDITED)
    edit(Path(built.source.path) / "val/roof/0001.jpg")
    return built


def pages(built: TokenizedImages, root: Path) -> None:
    write_codebook_pages(built.tokens.path, root / "pages", data_root=root, count=32, pictures=9, split="train")


READERS: dict[str, Callable[[TokenizedImages, Path], object]] = {
    "pre-training": lambda built, root: small_pretraining(built, root, "training.batch_size=18"),
    "pre-training with workers": lambda built, root: small_pretraining(
        built, root, "training.batch_size=18", workers=2
    ),
    "codebook pictures": pages,
    **{
        protocol: lambda built, root, protocol=protocol: small_evaluation(protocol, built, root)  # type: ignore[misc]
        for protocol in ("frozen_features", "linear_probe", "fine_tune", "transfer")
    },
}


@pytest.mark.parametrize("reader", READERS)
def test_an_image_edited_to_the_same_size_after_its_tokens_is_refused(
    reader: str, edited: TokenizedImages, tmp_path: Path
) -> None:
    expected = (
        rf"^(train/roof/0004|val/roof/0001)\.jpg: its \d+ bytes are not those .*{re.escape(str(edited.tokens.path))}"
    )
    with pytest.raises(PipelineError, match=expected) as refused:
        READERS[reader](edited, tmp_path)
    assert str(refused.value).endswith(ANEW)


def test_the_report_shows_no_image_that_is_not_the_one_that_has_tokens(tmp_path: Path) -> None:
    config = small_config(make_photos(tmp_path / "photos", train=9, val=2), tmp_path / "clip")
    made = build(config, tmp_path / "root")
    shutil.rmtree(made["report"].artifact.path)
    for photo in (tmp_path / "photos").rglob("*.jpg"):
        edit(photo)
    with pytest.raises(PipelineError, match=r"are not those of the time when .*tokenize_images"):
        build(config, tmp_path / "root")


def test_verify_names_every_image_that_changed(edited: TokenizedImages) -> None:
    folder = Path(edited.source.path).parent
    config = small_config(folder / "photos", folder / "clip")
    verdict = verify_source(config, Settings(data_root=folder / "root", device="cpu", workers=0))
    assert [problem.split(":")[0] for problem in verdict.problems] == [EDITED, "val/roof/0001.jpg"]
    assert all(problem.endswith(ANEW) for problem in verdict.problems)


def test_tokens_are_made_of_the_images_that_the_codebook_saw(tmp_path: Path) -> None:
    """Also where the features come from another data root, which remembers nothing of this one's images."""
    config = small_config(make_photos(tmp_path / "photos", train=9, val=2), tmp_path / "clip")
    made = build(config, tmp_path / "root")
    for stage in ("tokenize_images", "report"):
        shutil.rmtree(made[stage].artifact.path)
    shutil.rmtree(tmp_path / "root/cache")
    edit(tmp_path / "photos" / EDITED)
    with pytest.raises(PipelineError, match=r"roof/0004\.jpg: its \d+ bytes .*extract_features") as refused:
        build(config, tmp_path / "root")
    assert str(refused.value).endswith(ANEW)
    anew = small_config(tmp_path / "photos", tmp_path / "clip", "images.identity=content")
    assert not build(anew, tmp_path / "root")["tokenize_images"].cached


def test_what_is_read_without_tokens_is_compared_with_what_was_read_first(tmp_path: Path) -> None:
    photos = indexed(make_photos(tmp_path / "photos", train=9, val=3), tmp_path)
    training = {"training": {"epochs": 1}}
    fit(photos, tmp_path / "root", changed=training)
    edit(tmp_path / "photos" / EDITED)
    with pytest.raises(PipelineError, match="are not those of the time when it was first read"):
        fit(photos, tmp_path / "root", changed={**training, "seed": 1}, workers=1)
    alone = TokenizedImages(photos.images, photos.source, None)  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="are not those of the time when it was first read"):
        small_evaluation("transfer", alone, tmp_path / "root")


def test_an_index_by_contents_knows_its_images(tmp_path: Path) -> None:
    built = tokenize_photos(tmp_path, train=9, val=3)
    anew = small_config(tmp_path / "photos", tmp_path / "clip", "images.identity=content")
    made = build(anew, tmp_path / "root")
    known = replace(built, images=made["index_images"].artifact, source=anew.images)
    edit(tmp_path / "photos" / EDITED)
    alone = replace(known, tokens=None)  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match=r"0004\.jpg: .*touch it and run the build again, which indexes it anew"):
        small_evaluation("transfer", alone, tmp_path / "another root")


def test_an_index_made_anew_forgets_what_was_read_before(tmp_path: Path) -> None:
    """Whoever has deleted everything may begin with other images."""
    config = small_config(make_photos(tmp_path / "photos", train=9, val=3), tmp_path / "clip")
    made = build(config, tmp_path / "root")
    for result in made.results:
        shutil.rmtree(result.artifact.path)
    edit(tmp_path / "photos" / EDITED)
    assert not build(config, tmp_path / "root").all_cached


@pytest.fixture
def checksums(tmp_path: Path) -> ChecksumFile:
    return ChecksumFile(tmp_path / "cache/checksums/index.crc32c")


def put(checksums: ChecksumFile, first: int) -> None:
    for row in range(first, 1000, 4):
        checksums.put(row, 7 * row)


def test_processes_remember_together(checksums: ChecksumFile) -> None:
    assert checksums.get(3) is None
    with ProcessPoolExecutor(4) as processes:
        list(processes.map(put, [checksums] * 4, range(4)))
    assert [checksums.get(row) for row in range(1000)] == [7 * row for row in range(1000)]
    assert checksums.get(1000) is None


def test_a_damaged_checksum_is_one_that_nobody_knows(checksums: ChecksumFile) -> None:
    for row in range(4):
        checksums.put(row, 1000 + row)
    whole = checksums.path.read_bytes()
    for bit in range(64):
        data = bytearray(whole)
        data[8 + bit // 8] ^= 1 << bit % 8
        checksums.path.write_bytes(data[:27])
        again = pickle.loads(pickle.dumps(checksums))
        assert [again.get(row) for row in range(4)] == [1000, None, 1002, None]


def test_where_nothing_can_be_remembered_images_are_read_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    checksums = ChecksumFile(tmp_path / "file/checksums")
    checksums.put(0, 1)
    checksums.put(1, 1)
    assert checksums.get(0) is None
    assert len(caplog.records) == 1
    assert "images that change will be noticed by their sizes only" in caplog.text


def test_places_of_checksums_travel_to_other_processes(edited: TokenizedImages, tmp_path: Path) -> None:
    checksums = ChecksumSources.of(edited.images, Settings(data_root=tmp_path).layout, [edited.tokens, None])
    assert hash(pickle.loads(pickle.dumps(checksums))) == hash(checksums)
    index = ImageIndex.read(edited.images.path)
    known = pickle.loads(pickle.dumps(checksums)).read(len(index))
    row = index.table["name"].to_pylist().index(EDITED)
    data = (Path(edited.source.path) / EDITED).read_bytes()
    with pytest.raises(PipelineError, match=EDITED):
        known.require_same(index.entry(row), data)
