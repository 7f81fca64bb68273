"""Batches of decoded images: fixed shapes, bad places black, and whose fault it is when bytes cannot be had."""

import atexit
import errno
import json
import multiprocessing.util
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest

from models.encoders.preprocessing import Preprocessing
from pipeline.data.decode import read_and_decode
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.image_batches import ImageSet
from pipeline.data.source_options import ImageSourceOptions
from pipeline.data.sources.base import Scan
from pipeline.data.sources.kinds import open_source
from pipeline.engine.batches import load_in_workers
from pipeline.engine.settings import Settings
from pipeline.engine.shared_memory import loading_ahead
from storage.image_index import ImageEntry, ImageIndex, ImageStatus
from tests.builds import make_photos
from tests.forked import start

SQUARE = Preprocessing(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
ENTRY = ImageEntry(0, "a", "a.jpg", "", 0, -1, -1, -1)


@dataclass
class FailingReader:
    """Fails `times` times with an error of the system, then gives the bytes."""

    data: bytes
    error: int
    times: int
    asked: int = field(default=0, init=False)

    def read(self, entry: ImageEntry) -> bytes:
        self.asked += 1
        if self.asked <= self.times:
            raise OSError(self.error, "as the system says it")
        return self.data

    def close(self) -> None: ...


@dataclass(frozen=True)
class StaleSource:
    """A file server that went away after the scan."""

    def scan(self) -> Scan:
        raise AssertionError("not needed here")

    def reader(self) -> FailingReader:
        return FailingReader(b"", errno.ESTALE, 1000)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "images", train=5, val=1)


@pytest.fixture(scope="module")
def index(photos: Path) -> ImageIndex:
    scan = open_source(ImageSourceOptions(path=str(photos))).scan()
    return ImageIndex.build(scan.table, classes=scan.classes, source_kind="folder", images_per_shard=7)


def settings(workers: int) -> Settings:
    return Settings(device="cpu", workers=workers, batch_size=4)


def decode(reader: FailingReader) -> ImageStatus:
    return read_and_decode(reader, ENTRY, SQUARE, preset="exact", max_pixels=10**7).status


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_one_shape_and_never_cross_a_shard(workers: int, photos: Path, index: ImageIndex) -> None:
    images = ImageSet(index, open_source(ImageSourceOptions(path=str(photos))), DecodingOptions())
    batches = list(images.batches(list(enumerate(index.shards)), SQUARE, settings(workers)))
    assert [(batch.shard, len(batch)) for batch in batches] == [(0, 4), (0, 3), (1, 4), (1, 1)]
    assert {tuple(batch.pixels.shape) for batch in batches} == {(4, 3, 32, 32)}
    assert np.concatenate([batch.rows for batch in batches]).tolist() == list(range(12))
    assert not batches[-1].pixels[1:].any(), "what fills a batch up is black"
    assert all(batch.pixels[place].any() for batch in batches for place in range(len(batch)))


def test_a_bad_image_leaves_its_place_black_and_its_neighbours_alone(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=2, val=1)
    source = open_source(ImageSourceOptions(path=str(photos)))

    def first_batch() -> tuple[np.ndarray, list[bool]]:
        scan = source.scan()
        index = ImageIndex.build(scan.table, classes=scan.classes, source_kind="folder", images_per_shard=4)
        images = ImageSet(index, source, DecodingOptions())
        batch = next(images.batches(list(enumerate(index.shards)), SQUARE, settings(0)))
        return batch.pixels.numpy(), batch.valid.tolist()

    before, _ = first_batch()
    (photos / "train/bloom/0001.jpg").write_bytes(b"no image")
    after, valid = first_batch()
    assert valid == [True, False, True, True]
    assert not after[1].any()
    assert (after[[0, 2, 3]] == before[[0, 2, 3]]).all()


def test_a_hiccup_of_the_disk_is_tried_again(photos: Path) -> None:
    data = (photos / "train/bloom/0000.jpg").read_bytes()
    assert decode(FailingReader(data, errno.EIO, times=2)) == ImageStatus.VALID


def test_a_sector_that_stays_bad_is_the_images_fault() -> None:
    assert decode(FailingReader(b"", errno.EIO, times=1000)) == ImageStatus.UNREADABLE


def test_a_missing_file_is_the_images_fault_and_not_tried_again() -> None:
    reader = FailingReader(b"", errno.ENOENT, times=1000)
    assert decode(reader) == ImageStatus.UNREADABLE
    assert reader.asked == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_server_that_went_away_marks_no_image_bad(workers: int, index: ImageIndex) -> None:
    images = ImageSet(index, StaleSource(), DecodingOptions())
    with pytest.raises(OSError, match="as the system says it") as error:
        list(images.batches([(0, index.shards[0][:1])], SQUARE, settings(workers)))
    assert error.value.errno == errno.ESTALE


def _read_in_a_program_with_hooks(note: Path) -> None:
    """Register what a host may: all of these run in a forked worker too, and find a process that is not theirs."""
    own = os.getpid()

    def in_a_fork() -> None:
        assert os.getpid() == own, "an exit hook of the host program ran in a worker"

    threading._register_atexit(in_a_fork)  # type: ignore[attr-defined]  # as Prefect's log service does
    atexit.register(in_a_fork)
    multiprocessing.util.Finalize(None, in_a_fork, exitpriority=10)
    settings = Settings(data_root=note.parent, workers=2)
    loaded = list(load_in_workers(abs, range(-5, 0), settings, loading_ahead(1, settings)))
    note.write_text(json.dumps(loaded))


def test_exit_hooks_of_the_program_around_do_not_reach_a_worker(tmp_path: Path) -> None:
    note = tmp_path / "loaded"
    reader = start(tmp_path / "said", _read_in_a_program_with_hooks, note)
    assert reader.wait(120) == 0, reader.err
    assert json.loads(note.read_text()) == [5, 4, 3, 2, 1]
    assert reader.err == ""


def _fork_a_worker_that_is_slow_to_begin(note: Path) -> None:
    def slowly() -> None:
        note.write_text(str(os.getpid()))
        time.sleep(2)

    os.register_at_fork(after_in_child=slowly)
    settings = Settings(data_root=note.parent, workers=1)
    next(load_in_workers(abs, [-1], settings, loading_ahead(1, settings)))


def test_a_worker_ends_though_its_parent_was_killed_before_it_began(tmp_path: Path) -> None:
    """It holds what was open at the fork: an artifact's lock, say, on which every later run would wait for ever."""
    note = tmp_path / "worker"
    reader = start(tmp_path / "said", _fork_a_worker_that_is_slow_to_begin, note)
    reader.wait_until(lambda: note.exists() and note.read_text())
    worker = psutil.Process(int(note.read_text()))
    reader.kill()
    try:
        worker.wait(timeout=30)
    finally:
        if worker.is_running():
            worker.kill()
