"""What a fingerprint stands on: data sets that differ have different ones, a copy elsewhere has the same."""

import io
import os
import shutil
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.chains.plan import plan
from pipeline.configuration.config import PretrainConfig
from pipeline.configuration.overrides import apply_overrides
from pipeline.data.source_options import ImageSourceOptions
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import StageResult, Workspace
from storage.errors import StoreMismatch
from storage.image_index import ImageIndex
from tests.builds import as_parquet, as_tars, build, edit, make_photos, small_config
from tests.forked import server
from tests.stages import index_images, pretrain_on_tokens
from tests.trainings import SMALL

LAYOUTS = {"parquet": as_parquet, "webdataset": as_tars}


def index(root: Path, place: Path, kind: str = "folder", identity: str = "listing") -> StageResult:
    """Return the index of the images at `place`, in the data root `root`."""
    options = ImageSourceOptions.model_validate({"kind": kind, "path": str(place), "identity": identity})
    return index_images(options, workspace=Workspace(Settings(data_root=root, device="cpu")))


def picture(seed: int, width: int = 96, height: int = 80, form: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(file, form)
    return file.getvalue()


def write_parquet(folder: Path, images: list[bytes], **how: object) -> Path:
    folder.mkdir(parents=True)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([{"bytes": image, "path": None} for image in images], struct)})
    pq.write_table(table, folder / "train-00000-of-00001.parquet", **how)
    return folder


def test_parquet_of_the_same_names_and_counts_shares_no_tokens(tmp_path: Path) -> None:
    cats = write_parquet(tmp_path / "cats", [picture(i) for i in range(20)])
    cars = write_parquet(tmp_path / "cars", [picture(500 + i, 300, 200) for i in range(20)])
    made = [
        build(small_config(place, tmp_path / "clip", "images.kind=parquet"), tmp_path / "root")
        for place in (cats, cars)
    ]
    assert not any(result.cached for result in made[1].results)
    for stage in ("index_images", "extract_features", "tokenize_images"):
        assert made[0][stage].artifact.fingerprint != made[1][stage].artifact.fingerprint
    given = f"pretrain.tokens={made[0]['tokenize_images'].artifact.path}"
    words = ["images.kind=parquet", f"images.path={cars}", "images.images_per_shard=14", given, *SMALL]
    config = apply_overrides(PretrainConfig(), words)
    with pytest.raises(StoreMismatch, match="tokens of image index"):
        pretrain_on_tokens(config, Workspace(Settings(data_root=tmp_path / "root", device="cpu", workers=0)))


def test_parquet_that_differs_in_its_last_image_alone_is_another_data_set(tmp_path: Path) -> None:
    """Bitmaps without statistics: the footers are the same to the byte."""
    plain = {"write_statistics": False, "compression": "NONE", "use_dictionary": False}
    images = [picture(i, form="BMP") for i in range(5)]
    first = write_parquet(tmp_path / "first", images, **plain)
    second = write_parquet(tmp_path / "second", [*images[:-1], picture(9, form="BMP")], **plain)
    names = [next(folder.iterdir()) for folder in (first, second)]
    assert pq.read_metadata(names[0]).equals(pq.read_metadata(names[1]))
    made = [index(tmp_path / "root", place, "parquet").artifact.digest for place in (first, second)]
    assert made[0] != made[1]


def test_tars_of_the_same_names_and_sizes_written_later_are_another_data_set(tmp_path: Path) -> None:
    made = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        with tarfile.open(tmp_path / str(number) / "train-0.tar", "w") as tar:
            for name in ("a.jpg", "b.jpg"):
                data = picture(number, form="BMP")
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(data), 1000 + number
                tar.addfile(member, io.BytesIO(data))
        made.append(index(tmp_path / "root", tmp_path / str(number), "webdataset").artifact.digest)
    assert made[0] != made[1]


@pytest.mark.parametrize("identity", ["listing", "content"])
@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_a_copy_of_a_data_set_keeps_its_fingerprint(kind: str, identity: str, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=4, val=2)
    place = LAYOUTS[kind](photos, tmp_path / kind) if kind in LAYOUTS else photos
    copy = tmp_path / "elsewhere" / "under another name"
    shutil.copytree(place, copy, copy_function=shutil.copyfile)  # without times
    made = index(tmp_path / "root", place, kind, identity).artifact
    copied = index(tmp_path / "root", copy, kind, identity)
    assert copied.cached
    of_somebody_else = index(tmp_path / "another root", copy, kind, identity).artifact
    assert (of_somebody_else.fingerprint, of_somebody_else.digest) == (made.fingerprint, made.digest)
    moved = place.rename(tmp_path / "moved")
    assert index(tmp_path / "root", moved, kind, identity).artifact.digest == made.digest


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_an_image_edited_to_the_same_size_is_seen_by_its_contents(kind: str, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=3, val=2)
    edited = make_photos(tmp_path / "edited", train=3, val=2)
    edit(edited / "train/roof/0001.jpg")
    places = [LAYOUTS[kind](one, tmp_path / one.name[::-1]) if kind in LAYOUTS else one for one in (photos, edited)]
    made = [index(tmp_path / "root", place, kind, "content").artifact for place in places]
    assert made[0].digest != made[1].digest
    before, after = (ImageIndex.read(artifact.path).table["crc32c"].to_pylist() for artifact in made)
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


def test_parquet_compressed_otherwise_has_the_same_contents(tmp_path: Path) -> None:
    images = [picture(i) for i in range(6)]
    places = [write_parquet(tmp_path / form, images, compression=form, row_group_size=3) for form in ("NONE", "ZSTD")]
    for identity, expected in (("content", 1), ("listing", 2)):
        made = {index(tmp_path / "root", place, "parquet", identity).artifact.digest for place in places}
        assert len(made) == expected


def test_what_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=3, val=2)
    first = index(tmp_path / "root", photos, identity="content").artifact
    path = photos / "train/bloom/0000.jpg"
    before = path.stat()
    edit(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # behind its date: only who reads it sees it
    assert index(tmp_path / "root", photos, identity="content").artifact.digest == first.digest
    os.utime(path)
    assert index(tmp_path / "root", photos, identity="content").artifact.digest != first.digest


def test_a_damaged_memory_of_contents_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = make_photos(tmp_path / "photos", train=3, val=2)
    first = index(tmp_path / "root", photos, identity="content").artifact
    [remembered] = (tmp_path / "root/cache/contents").iterdir()
    whole = remembered.read_bytes()
    place = len(whole) // 3
    for damaged in (whole[: len(whole) // 2], bytes([*whole[:place], whole[place] ^ 1, *whole[place + 1 :]]), b""):
        remembered.write_bytes(damaged)
        assert index(tmp_path / "root", photos, identity="content").artifact.digest == first.digest
        assert pq.read_table(remembered).num_rows == 10
    assert "damaged" in caplog.text


def test_a_plan_reads_no_image_to_identify_it(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=3, val=2)
    settings = Settings(data_root=tmp_path / "root", device="cpu", workers=0)
    config = small_config(photos, tmp_path / "clip", "images.identity=content")
    planned = plan("kclip-build", config, settings)[0]
    assert (planned.stage, planned.state) == ("index_images", "run")
    assert planned.reason == "10 of 10 images have to be read first (images.identity=content)"
    assert not (tmp_path / "root").exists()
    index_images(config.images, workspace=Workspace(settings))
    assert plan("kclip-build", config, settings)[0].state == "cached"


def test_an_image_that_cannot_be_read_has_no_contents_and_keeps_its_row(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=2, val=1)
    (photos / "train/roof/0001.jpg").unlink()
    (photos / "train/roof/0001.jpg").symlink_to("nowhere")
    made = index(tmp_path / "root", photos, identity="content").artifact
    found = ImageIndex.read(made.path)
    known = dict(zip(found.table["name"].to_pylist(), found.table["crc32c"].to_pylist(), strict=True))
    assert [name for name, checksum in known.items() if checksum is None] == ["train/roof/0001.jpg"]


def test_parquet_of_many_row_groups_and_of_none_is_identified(tmp_path: Path) -> None:
    images = [picture(i) for i in range(30)]
    many = write_parquet(tmp_path / "many", images, row_group_size=1)
    empty = write_parquet(tmp_path / "and empty", [])
    shutil.copy(next(empty.iterdir()), many / "train-00001-of-00002.parquet")
    first = index(tmp_path / "root", many, "parquet").artifact
    assert first.summary["images"] == 30
    (many / "train-00001-of-00002.parquet").unlink()
    assert index(tmp_path / "root", many, "parquet").artifact.digest != first.digest


def digest_by_content(root: Path, place: Path) -> str:
    return index(root, place, identity="content").artifact.digest


def test_two_runs_at_once_remember_the_same_contents(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=6, val=2)
    with ProcessPoolExecutor(2, mp_context=server()) as processes:
        digests = set(processes.map(digest_by_content, [tmp_path / "root"] * 4, [photos] * 4))
    assert len(digests) == 1
    [remembered] = (tmp_path / "root/cache/contents").iterdir()
    assert pq.read_table(remembered).num_rows == 16
