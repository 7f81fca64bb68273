"""Small real builds for tests: photographs on disk in every layout, a tiny CLIP, a workspace that tracks nothing."""

import io
import json
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.chains.graph import FlowResult
from pipeline.configuration.config import KClipBuildConfig
from pipeline.configuration.overrides import apply_overrides
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from storage.token_store import TokenStore
from tests.stages import kclip_build
from tests.tiny_clip import write_tiny_clip

CLASSES = ("bloom", "roof")  # crops of scikit-learn's photographs of a flower and of a temple


@lru_cache(maxsize=1)
def _photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    temple, flower = load_sample_images().images
    return [flower, temple]


def make_photos(folder: Path, *, train: int = 30, val: int = 6, seed: int = 0) -> Path:
    """Return an ImageFolder tree of real JPEG photographs of many sizes, `train` and `val` images per class."""
    random = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for name, photograph in zip(CLASSES, _photographs(), strict=True):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = random.integers(60, 200, 2)
                top, left = random.integers(0, 427 - height), random.integers(0, 640 - width)
                crop = Image.fromarray(photograph[top : top + height, left : left + width])
                crop.save(folder / split / name / f"{number:04d}.jpg", quality=90)
    return folder


def as_parquet(photos: Path, folder: Path, *, files: int = 2, row_group_size: int = 7) -> Path:
    """Return a shuffled Parquet copy in the layout of the Hugging Face hub."""
    folder.mkdir()
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split in ("train", "val"):
        paths = sorted((photos / split).rglob("*.jpg"))
        np.random.default_rng(1).shuffle(paths)
        for number, chunk in enumerate(np.array_split(np.array(paths, dtype=object), files)):
            images = [{"bytes": p.read_bytes(), "path": p.relative_to(photos / split).as_posix()} for p in chunk]
            labels = [CLASSES.index(path.parent.name) for path in chunk]
            table = pa.table({"image": pa.array(images, struct), "label": pa.array(labels, pa.int64())})
            pq.write_table(
                table, folder / f"{split}-{number:05d}-of-{files:05d}.parquet", row_group_size=row_group_size
            )
    return folder


def as_tars(photos: Path, folder: Path, *, shards: int = 3) -> Path:
    """Return a WebDataset copy: members in shuffled order over some shards."""
    folder.mkdir()
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    for split in ("train", "val"):
        paths = sorted((photos / split).rglob("*.jpg"))
        np.random.default_rng(2).shuffle(paths)
        for number, chunk in enumerate(np.array_split(np.array(paths, dtype=object), shards)):
            with tarfile.open(folder / f"photos-{split}-{number:04d}.tar", "w") as tar:
                for path in chunk:
                    key = path.relative_to(photos / split).with_suffix("").as_posix()
                    _add(tar, f"{key}.jpg", path.read_bytes())
                    _add(tar, f"{key}.json", json.dumps({"label": CLASSES.index(path.parent.name)}).encode())
    return folder


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def edit(path: Path) -> None:
    """Give a file other bytes, of the same number, at a later time."""
    data = bytearray(path.read_bytes())
    data[-20] ^= 0xFF
    path.write_bytes(data)


def small_config(photos: Path, clip: Path, *overrides: str) -> KClipBuildConfig:
    """Return a build of seconds: 64 px images, 16 patches, 32 centroids, several small shards."""
    if not clip.exists():
        write_tiny_clip(clip)
    return apply_overrides(
        KClipBuildConfig(),
        [
            f"images.path={photos}",
            "images.images_per_shard=14",
            f"clip.model=local-dir:{clip}",
            "clip.precision=fp32",
            "clip.dilate_last_stage=true",
            "features.sample_fraction=0.5",
            "codebook.vocabulary=32",
            "codebook.iterations=5",
            *overrides,
        ],
    )


def build(config: KClipBuildConfig, root: Path, *, workers: int = 0, batch_size: int = 4) -> FlowResult:
    return kclip_build(
        config, Workspace(Settings(data_root=root, device="cpu", workers=workers, batch_size=batch_size))
    )


def build_in_process(photos: Path, clip: Path, root: Path) -> None:
    """Build in this process, for tests that kill it."""
    build(small_config(photos, clip), root, workers=1)


def tokens_of(made: FlowResult) -> np.ndarray:
    return TokenStore(made["tokenize_images"].artifact.path).load()
