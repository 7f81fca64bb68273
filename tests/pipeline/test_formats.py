"""Every format that Pillow reads, by the same endings everywhere; what is left out is counted and explained."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.encoders.preprocessing import Preprocessing
from pipeline.data.decode import decode_image, read_and_decode
from pipeline.data.formats import ENDINGS, why_no_image
from pipeline.data.labelled_images import open_rgb
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.kinds import open_source
from pipeline.engine.errors import PipelineError
from storage.image_index import ImageIndex, ImageStatus
from tests.pipeline.cases import (
    bytes_by_name,
    encoded,
    hub_images,
    picture,
    scan,
    write_parquet,
    write_pictures,
    write_tar,
)

SMALL = Preprocessing(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
FORMAT_OF = {
    "jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "mpo": "MPO", "png": "PNG", "apng": "PNG",
    "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "dib": "DIB", "tif": "TIFF", "tiff": "TIFF", "avif": "AVIF",
    "ppm": "PPM", "pnm": "PPM", "jp2": "JPEG2000", "j2k": "JPEG2000", "tga": "TGA", "pcx": "PCX", "qoi": "QOI",
    "sgi": "SGI", "ico": "ICO", "icns": "ICNS", "dds": "DDS",
}  # fmt: skip


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("each")
    for ending, form in FORMAT_OF.items():
        picture(1, 64, 64).save(folder / f"x.{ending}", form)
    picture(1, 64, 64).convert("L").save(folder / "x.pgm", "PPM")
    picture(1, 64, 64).convert("1").save(folder / "x.pbm", "PPM")
    return folder


def test_every_format_is_taken_and_decoded_from_a_folder(one_of_each: Path) -> None:
    options = ImageSourceOptions(path=str(one_of_each))
    source = open_source(options)
    found = source.scan()
    assert len(found.table) == len(FORMAT_OF) + 2
    index = ImageIndex.build(found.table, classes=(), source_kind="folder", images_per_shard=99)
    reader = source.reader()
    for entry in index.entries(np.arange(len(index))):
        image = read_and_decode(reader, entry, SMALL, preset="exact", max_pixels=10**7)
        assert (image.status, image.reason) == (ImageStatus.VALID, ""), entry.name
        assert image.pixels is not None
        assert image.pixels.std() > 5, entry.name
        assert open_rgb(reader, entry).mode == "RGB"


def test_a_tar_takes_the_endings_that_a_folder_takes(one_of_each: Path, tmp_path: Path) -> None:
    files = sorted(one_of_each.iterdir())
    write_tar(tmp_path / "a.tar", [(f"{path.suffix[1:]}{path.suffix}", path.read_bytes()) for path in files])
    assert set(bytes_by_name(tmp_path, "webdataset").values()) == {path.read_bytes() for path in files}


@pytest.mark.parametrize("ending", [".eps", ".ps", ".wmf", ".emf", ".h5", ".mpg", ".pdf", ".pcd"])
def test_what_starts_programs_or_holds_no_picture_stays_closed(ending: str) -> None:
    assert ending not in ENDINGS


def test_a_format_without_a_signature_is_tried_only_where_the_name_says_so(one_of_each: Path) -> None:
    data = (one_of_each / "x.tga").read_bytes()
    unnamed, named = (decode_image(data, SMALL, preset="exact", max_pixels=10**6, name=name) for name in ("x", "x.TGA"))
    assert (unnamed.status, named.status) == (ImageStatus.NOT_AN_IMAGE, ImageStatus.VALID)


def test_what_is_left_out_is_counted_by_ending_in_one_line(tmp_path: Path) -> None:
    write_pictures(
        tmp_path, "a/1.jpg", "a/2.JFIF", "a/noending", "a/3.heic", "a/4.HEIC", "b.txt", "._5.jpg", ".DS_Store"
    )
    words = scan(tmp_path).in_words()
    assert "images: 2; splits: train 2; classes: 1 (a); without a label: 0; left out: 2 .heic (Pillow does" in words
    assert "1 without an ending" in words
    assert "1 .txt" in words
    assert "\n" not in words
    assert "left out: nothing" in scan(write_pictures(tmp_path / "clean", "1.jpg")).in_words()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("IMG_1.HEIC", r"1 \.heic \(Pillow does not read HEIC: convert"),
        ("1.tar", "images.kind=webdataset"),
        ("1.parquet", "images.kind=parquet"),
        ("1.zip", "unpack"),
        ("1.NEF", "develop"),
    ],
)
def test_a_folder_of_nothing_else_is_refused_with_what_to_do(name: str, advice: str, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=rf"no images found; check images\.path.*{advice}"):
        scan(write_pictures(tmp_path, name))


def test_heic_under_another_name_is_called_by_its_own() -> None:
    assert "convert to JPEG" in why_no_image(b"\0\0\0\x1cftypheic\0\0\0\0")
    image = decode_image(b"\0\0\0\x1cftypheic" + bytes(90), SMALL, preset="exact", max_pixels=10**6)
    assert (image.status, "HEIC" in image.reason) == (ImageStatus.NOT_AN_IMAGE, True)


def test_hidden_files_are_no_data_in_any_layout(tmp_path: Path) -> None:
    hidden = ("._1.jpg", "__MACOSX/a/1.jpg", "a/.cache/1.jpg", "__MACOSX/._1.jpg")
    write_pictures(tmp_path / "folder", "a/1.jpg", *(f"a/{name}" for name in hidden))
    assert scan(tmp_path / "folder").table["name"].to_pylist() == ["a/1.jpg"]
    write_tar(tmp_path / "tars/a.tar", [(name, encoded()) for name in ("a/1.jpg", *hidden)])
    write_tar(tmp_path / "tars/._a.tar", [("a/2.jpg", encoded())])
    assert scan(tmp_path / "tars", "webdataset").table["name"].to_pylist() == ["a/1.jpg"]
    write_parquet(tmp_path / "hub/a.parquet", {"image": hub_images("a/1.jpg", *hidden)})
    found = scan(tmp_path / "hub", "parquet")
    assert found.table["name"].to_pylist() == ["a/1.jpg", "a/.cache/1.jpg"]  # a path of another machine
    assert "left out: 3 hidden" in found.in_words()


def test_an_odd_tga_inside_parquet_is_found_by_its_path(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "x.tga")
    data = [{"bytes": (tmp_path / "x.tga").read_bytes(), "path": "x.tga"}]
    write_parquet(tmp_path / "hub/a.parquet", {"image": data})
    source = open_source(ImageSourceOptions(kind="parquet", path=str(tmp_path / "hub")))
    found = source.scan()
    index = ImageIndex.build(found.table, classes=(), source_kind="parquet", images_per_shard=9)
    assert read_and_decode(source.reader(), index.entry(0), SMALL, preset="exact", max_pixels=99).reason == ""
