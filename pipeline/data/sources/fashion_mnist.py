"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747) as its authors publish it: 70,000 real photographs of
clothes, 28 x 28, gray, in four files of MNIST's format; the 10,000 test images are the split `val`.

    idx3: magic 2051, images, rows, columns (big endian), then the pixels    idx1: magic 2049, labels, then the labels

An image is handed on as PGM, which is its pixels behind a line of text. A canonical name is split, class and number,
such as `val/sandal/00042.pgm`.
"""

import gzip
import struct
import zlib
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.sources.base import Scan
from pipeline.engine.errors import PipelineError
from storage.image_index import SCAN_SCHEMA, ImageEntry

PACKAGE, INSTALLED_AT = "dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")  # Debian's
_CLASSES = (  # in the order of the labels
    ("t_shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot")
)
_FILES = {"train": "train", "val": "t10k"}
_IMAGES, _LABELS = 2051, 2049


@dataclass(frozen=True)
class FashionMnistSource:
    """Four files in `root`, packed by gzip or not."""

    root: Path

    def scan(self) -> Scan:
        """Raises PipelineError: a file is missing, or not what its name says."""
        digest, tables = sha256(), []
        for split, prefix in _FILES.items():
            images, labels = _images_in(self.root, prefix), _labels_in(self.root, prefix)
            if len(images) != len(labels) or (len(labels) and labels.max() >= len(_CLASSES)):
                raise PipelineError(
                    f"{self.root}: {len(images)} images and {len(labels)} labels of {split}, expected as many labels "
                    f"below {len(_CLASSES)}; copy the files again"
                )
            digest.update(images.tobytes() + labels.tobytes())
            tables.append(_listed(split, prefix, images, labels))
        return Scan(pa.concat_tables(tables), _CLASSES, contents=digest.hexdigest())

    def reader(self) -> "FashionMnistReader":
        return FashionMnistReader(self.root)


class FashionMnistReader:
    """Holds the pixels of the files that it has read from: 47 MB for training."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._opened: dict[str, np.ndarray] = {}

    def read(self, entry: ImageEntry) -> bytes:
        """Return the image as PGM. Raises OSError when its file cannot be read."""
        if entry.container not in self._opened:
            try:
                self._opened[entry.container] = _images_in(self._root, entry.container)
            except PipelineError as error:  # it was whole when it was listed
                raise OSError(str(error)) from error
        return _as_pgm(self._opened[entry.container][entry.row_in_group])

    def close(self) -> None:
        self._opened.clear()


def _listed(split: str, prefix: str, images: np.ndarray, labels: np.ndarray) -> pa.Table:
    count = len(images)
    columns = {
        "name": [f"{split}/{_CLASSES[label]}/{number:05d}.pgm" for number, label in enumerate(labels)],
        "split": [split] * count,
        "label": labels.astype(np.int32),
        "container": [prefix] * count,
        "key": [""] * count,
        "offset": np.zeros(count, np.int64),
        "row_group": np.full(count, -1, np.int32),
        "row_in_group": np.arange(count, dtype=np.int32),
        "bytes": np.full(count, len(_as_pgm(images[0])) if count else 0, np.int64),
    }
    return pa.table(columns, schema=SCAN_SCHEMA)


def _as_pgm(image: np.ndarray) -> bytes:
    rows, columns = image.shape
    return b"P5 %d %d 255\n" % (columns, rows) + image.tobytes()


def _images_in(root: Path, prefix: str) -> np.ndarray:
    """Return uint8 [images, rows, columns]."""
    return _read(root / f"{prefix}-images-idx3-ubyte", magic=_IMAGES, axes=3)


def _labels_in(root: Path, prefix: str) -> np.ndarray:
    """Return uint8 [images]."""
    return _read(root / f"{prefix}-labels-idx1-ubyte", magic=_LABELS, axes=1)


def _read(path: Path, *, magic: int, axes: int) -> np.ndarray:
    packed = path.with_name(f"{path.name}.gz")
    there = next((one for one in (path, packed) if one.is_file()), None)
    if there is None:
        raise PipelineError(
            f"{path.parent}: {path.name} (or .gz) is not there; Debian's package {PACKAGE} has the files, in "
            f"{INSTALLED_AT}: apt install {PACKAGE}"
        )
    try:
        data = there.read_bytes()
        data = gzip.decompress(data) if there == packed else data
        found, *shape = struct.unpack_from(f">{1 + axes}I", data)
        values = np.frombuffer(data, np.uint8, offset=4 * (1 + axes))
        if found != magic:
            raise ValueError(f"it begins with {found}")
        return values.reshape(shape)
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error, struct.error) as error:
        raise PipelineError(
            f"{there}: not a file of MNIST's format ({error}), expected {magic} and {axes} sizes first; copy it again"
        ) from error
