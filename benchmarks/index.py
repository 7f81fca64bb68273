"""What indexing a folder takes per image: memory above that of the libraries, and time against a bare walk.

The images are hard links to a few files, in class folders and under names as long as ImageNet's. A folder of one class
is indexed first, in the same process, so that all libraries are loaded before memory and time are counted.
"""

import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Measurement, Seconds, anonymous_bytes, in_own_process, median_ratio, timed
from benchmarks.pictures import write_small_images

_IMAGES_OF_A_CLASS = 1_000  # a file takes 65,000 links at most on ext4


@dataclass(frozen=True)
class Indexing:
    """Of one folder. `before`: bytes of anonymous memory when it began; `walk`: only names and sizes were listed."""

    before: int
    index: Seconds
    walk: Seconds


def run(images: int = 400_000, rounds: int = 2) -> list[Measurement]:
    """Index a folder of so many images, each round in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="mapet-index-") as folder:
        write_links(Path(folder, "images"), count=images)
        write_links(Path(folder, "few"), count=_IMAGES_OF_A_CLASS)
        measured = [in_own_process(index_folder, folder, number) for number in range(rounds)]
    found: list[Indexing] = [one.result for one in measured]
    memory = [(one.peak_anonymous - one.result.before) / images for one in measured]
    wall, walk_wall = [one.index.wall for one in found], [one.walk.wall for one in found]
    cpu, walk_cpu = [one.index.cpu for one in found], [one.walk.cpu for one in found]
    against = "names and sizes alone, by os.scandir: {:.3g} s"
    return [
        Measurement("index.memory", statistics.median(memory), f"bytes per image at the peak, {images:,} images"),
        _compared("index.wall", "s", wall, walk_wall, against),
        _compared("index.cpu", "CPU-seconds", cpu, walk_cpu, against),
    ]


def _compared(name: str, unit: str, values: list[float], others: list[float], against: str) -> Measurement:
    words = against.format(statistics.median(others))
    return Measurement(name, statistics.median(values), unit, words, median_ratio(values, others))


def write_links(root: Path, *, count: int) -> None:
    """Link `count` images as ImageNet calls them: `root/train/n01440764/n01440764_10026.JPEG`."""
    write_small_images(root / "seen", count=1)
    [image] = (root / "seen").rglob("*.jpg")
    for first in range(0, count, _IMAGES_OF_A_CLASS):
        name = f"n{1_440_764 + first:08d}"
        (root / "train" / name).mkdir(parents=True)
        file = root / "train" / name / f"{name}_10000.JPEG"
        file.write_bytes(image.read_bytes())
        for number in range(1, min(_IMAGES_OF_A_CLASS, count - first)):
            file.with_name(f"{name}_{10_000 + number}.JPEG").hardlink_to(file)
    image.unlink()


def index_folder(folder: str, number: int) -> Indexing:
    """Index `<folder>/images`; runs in a process of its own."""
    from pipeline.data.source_options import ImageSourceOptions
    from pipeline.engine.settings import Settings
    from pipeline.engine.workspace import Workspace
    from tests.stages import index_images

    workspace = Workspace(Settings(data_root=Path(folder, f"data{number}"), device="cpu"))

    def index(name: str) -> None:
        index_images(ImageSourceOptions(kind="folder", path=f"{folder}/{name}"), workspace=workspace)

    index("few")
    walk = timed(lambda: list_files(Path(folder, "images")))
    before = anonymous_bytes()
    return Indexing(before, timed(lambda: index("images")), walk)


def list_files(root: Path) -> int:
    """List all files with their sizes, and forget them; return the sum."""
    total, pending = 0, [str(root)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(entry.path)
                else:
                    total += entry.stat().st_size
    return total
