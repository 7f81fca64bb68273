"""Small data sets as people have them: pictures in any format, tars and Parquet files, label maps."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.base import Scan
from pipeline.data.sources.kinds import open_source
from storage.image_index import ImageIndex

HUB_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(seed: int = 0, width: int = 24, height: int = 20) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def encoded(seed: int = 0, form: str = "JPEG") -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, form)
    return file.getvalue()


def write_pictures(root: Path, *names: str) -> Path:
    """Write JPEGs, whatever they are called, each another picture."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(seed))
    return root


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_parquet(path: Path, columns: Mapping[str, Any], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)).replace_schema_metadata(metadata), path, row_group_size=2)
    return path


def hub_images(*paths: str | None) -> pa.Array:
    return pa.array([{"bytes": encoded(seed), "path": path} for seed, path in enumerate(paths)], HUB_IMAGE)


def write_label_maps(root: Path, labels: np.ndarray, *, split: str = "training", name: str = "a") -> None:
    """Write a picture and its labels, uint8 [H, W], in ADE20K's layout."""
    for kind in ("images", "annotations"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    picture(0, labels.shape[1], labels.shape[0]).save(root / "images" / split / f"{name}.jpg")
    Image.fromarray(labels).save(root / "annotations" / split / f"{name}.png")


def scan(root: Path, kind: str = "folder", **options: Any) -> Scan:
    return open_source(ImageSourceOptions(kind=kind, path=str(root), **options)).scan()  # type: ignore[arg-type]


def labels_by_name(found: Scan) -> dict[str, str | None]:
    """Return canonical name -> class name."""
    rows = found.table.to_pylist()
    return {row["name"]: found.classes[row["label"]] if row["label"] >= 0 else None for row in rows}


def bytes_by_name(root: Path, kind: str = "folder", **options: Any) -> dict[str, bytes]:
    """Return canonical name -> what the reader gives."""
    source = open_source(ImageSourceOptions(kind=kind, path=str(root), **options))  # type: ignore[arg-type]
    found, reader = source.scan(), source.reader()
    index = ImageIndex.build(found.table, classes=found.classes, source_kind=kind, images_per_shard=3)
    return {entry.name: reader.read(entry) for entry in index.entries(np.arange(len(index)))}
