"""Fashion-MNIST's four files, read as any other images."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.fashion_mnist import INSTALLED_AT
from pipeline.data.sources.kinds import open_source
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from storage.image_index import ImageIndex
from tests.stages import index_images


def write_fashion_mnist(folder: Path, *, train: int = 6, val: int = 3, packed: bool = True) -> Path:
    """Return a folder with a small data set of that layout."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", val)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) * 7 % 10).astype(np.uint8)
        for name, head, values in (
            (f"{prefix}-images-idx3-ubyte", struct.pack(">4I", 2051, count, 28, 28), images),
            (f"{prefix}-labels-idx1-ubyte", struct.pack(">2I", 2049, count), labels),
        ):
            data = head + values.tobytes()
            (folder / f"{name}.gz" if packed else folder / name).write_bytes(gzip.compress(data) if packed else data)
    return folder


def options(folder: Path) -> ImageSourceOptions:
    return ImageSourceOptions(kind="fashion_mnist", path=str(folder))


def test_packed_or_not_the_images_are_those_of_the_files(tmp_path: Path) -> None:
    found = []
    for packed in (True, False):
        folder = write_fashion_mnist(tmp_path / str(packed), packed=packed)
        workspace = Workspace(Settings(data_root=tmp_path / "root"))
        made = index_images(options(folder), workspace=workspace)
        index, reader = ImageIndex.read(made.artifact.path), open_source(options(folder)).reader()
        assert index.splits == {"train": 6, "val": 3}
        images = [np.asarray(Image.open(io.BytesIO(reader.read(entry)))) for entry in index.entries(np.arange(9))]
        found.append((made.artifact.fingerprint, index.table["name"].to_pylist(), images))
    assert found[0][:2] == found[1][:2], "how the files are packed does not make another data set"
    assert np.array_equal(found[0][2], found[1][2])
    names = found[0][1]
    assert "train/sneaker/00001.pgm" in names
    random = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    assert np.array_equal(found[0][2][names.index("train/sneaker/00001.pgm")], random[1])


def test_another_pixel_makes_another_data_set(tmp_path: Path) -> None:
    folder = write_fashion_mnist(tmp_path / "files", packed=False)
    before = open_source(options(folder)).scan().contents
    path = folder / "t10k-images-idx3-ubyte"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert open_source(options(folder)).scan().contents != before


@pytest.mark.skipif(INSTALLED_AT.exists(), reason="Debian's package is installed")
def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(PipelineError, match="apt install dataset-fashion-mnist"):
        open_source(options(INSTALLED_AT))


def test_files_that_are_missing_or_something_else_are_one_sentence(tmp_path: Path) -> None:
    folder = write_fashion_mnist(tmp_path / "files", packed=False)
    (folder / "train-labels-idx1-ubyte").write_bytes((folder / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(PipelineError, match="6 images and 3 labels of train"):
        open_source(options(folder)).scan()
    (folder / "train-images-idx3-ubyte").write_bytes(b"something else altogether")
    with pytest.raises(PipelineError, match=r"train-images-idx3-ubyte: not a file of MNIST's format .*; copy it again"):
        open_source(options(folder)).scan()
    (folder / "train-images-idx3-ubyte").unlink()
    with pytest.raises(PipelineError, match=r"train-images-idx3-ubyte \(or .gz\) is not there; Debian's package"):
        open_source(options(folder)).scan()
