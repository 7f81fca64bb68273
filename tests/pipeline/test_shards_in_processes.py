"""Shards of images encoded by other processes than the stage's, without Dask: the same bytes, and nothing done
twice."""

import errno
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dask
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.clip.encoder import load_clip
from models.clip.options import ClipOptions
from pipeline.chains.graph import FlowResult
from pipeline.configuration.config import KClipBuildConfig
from pipeline.encoding.networks import encoder_for
from pipeline.encoding.shard_job import ShardJob
from pipeline.engine.errors import PipelineError
from pipeline.engine.scale_out import DaskShards, MapShards, dask_cluster, in_groups
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from storage.shards import ShardFolder
from tests.builds import build, make_photos, small_config
from tests.forked import server
from tests.stages import kclip_build
from tests.tiny_clip import write_tiny_clip

STAGES = ("index_images", "extract_features", "fit_codebook", "tokenize_images")


@dataclass(frozen=True)
class InProcesses:
    """A `MapShards` on two processes; what they made comes back last group first.

    They are of a fork server, whose children have computed nothing: OpenMP does not survive a fork.
    """

    def __call__(self, work: Callable[[Sequence[Any]], Any], shards: Sequence[Any]) -> Iterator[Any]:
        with ProcessPoolExecutor(2, mp_context=server()) as pool:
            yield from reversed(list(pool.map(work, in_groups(shards, workers=1))))


@dataclass(frozen=True)
class Here:
    """A `MapShards` that sends jobs through pickle only, one shard at a time; `change` makes another job of each."""

    change: Callable[[ShardJob], ShardJob] = lambda job: job
    calls: list[ShardJob] = field(default_factory=list)

    def __call__(self, work: Any, shards: Sequence[Any]) -> Iterator[Any]:
        for shard in shards:
            self.calls.append(pickle.loads(pickle.dumps(self.change(work))))
            yield self.calls[-1]([shard])


def build_in_processes(config: KClipBuildConfig, root: Path, map_shards: MapShards, **settings: Any) -> FlowResult:
    machine = Settings(data_root=root, device="cpu", batch_size=4, **{"workers": 0, **settings})
    return kclip_build(config, Workspace(machine, map_shards=map_shards))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "images")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip") / "tiny"


@pytest.fixture(scope="module")
def one_process(photos: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> FlowResult:
    return build(small_config(photos, clip), tmp_path_factory.mktemp("root"))


def test_other_processes_make_the_same_bytes(one_process: FlowResult, photos: Path, clip: Path, tmp_path: Path) -> None:
    made = build_in_processes(small_config(photos, clip), tmp_path, InProcesses(), workers=1)
    for stage in STAGES:
        assert made[stage].artifact.digest == one_process[stage].artifact.digest
    assert made["extract_features"].artifact.notes["images_per_second"] > 0


def test_a_pickled_job_is_small_and_holds_no_password(photos: Path, clip: Path, tmp_path: Path) -> None:
    mapper = Here()
    uri = "http://user:hunter2@127.0.0.1:9"
    build_in_processes(small_config(photos, clip), tmp_path, mapper, tracking_uri=uri)
    for job in mapper.calls:
        assert len(pickle.dumps(job)) < 10_000
        assert b"hunter2" not in pickle.dumps(job)


def test_shards_that_a_killed_worker_finished_are_reported_and_not_written_again(
    one_process: FlowResult, photos: Path, clip: Path, tmp_path: Path
) -> None:
    kept: list[str] = []

    def killed_after_two_shards(work: Any, shards: Sequence[Any]) -> Iterator[Any]:
        work(shards[:2])  # what it returns is lost with the worker
        written = {path: path.stat() for path in work.shards.folder.rglob("*") if path.is_file()}
        kept.extend(path.name for path in written)
        yield work(shards)
        for path, before in written.items():
            now = path.stat()
            assert (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    made = build_in_processes(small_config(photos, clip), tmp_path, killed_after_two_shards)
    # Of two shards of both stages: features or tokens, what became of the images, a record.
    assert sorted(kept) == sorted(
        2 * ["00000.arrow", "00000.arrow", "00000.json", "00001.arrow", "00001.arrow", "00001.json"]
    )
    for stage in STAGES:
        assert made[stage].artifact.digest == one_process[stage].artifact.digest


def test_what_other_machines_wrote_and_the_disk_does_not_show_yet_is_not_left_out(
    one_process: FlowResult, photos: Path, clip: Path, tmp_path: Path
) -> None:
    def not_shown(work: Any, shards: Sequence[Any]) -> Iterator[Any]:
        yield work(shards)
        (work.shards.folder / work.part / "00001.arrow").unlink()

    config = small_config(photos, clip)
    with pytest.raises(OSError, match="does not show yet what other machines wrote") as error:
        build_in_processes(config, tmp_path, not_shown)
    assert error.value.errno == errno.ESTALE, "of which Prefect's tasks know that trying again helps"
    assert not list(tmp_path.glob("extract_features/*/artifact.json"))
    again = build_in_processes(config, tmp_path, Here())
    assert again["tokenize_images"].artifact.digest == one_process["tokenize_images"].artifact.digest


def test_too_many_bad_images_begin_no_further_shard(clip: Path, tmp_path: Path) -> None:
    photos, mapper = make_photos(tmp_path / "photos"), Here()
    for path in sorted((photos / "train" / "bloom").iterdir())[:3]:
        path.write_bytes(b"no image")
    config = small_config(photos, clip, "decoding.max_bad_images=2")
    with pytest.raises(PipelineError, match="3 of the 14 images read so far are bad, 2 are allowed"):
        build_in_processes(config, tmp_path / "root", mapper)
    assert len(mapper.calls) == 1


def test_on_bad_image_fail_says_the_same_from_another_process(clip: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", train=8, val=2)
    (photos / "train/roof/0003.jpg").write_bytes(b"no image")
    config = small_config(photos, clip, "decoding.on_bad_image=fail")
    with pytest.raises(PipelineError, match=r"^train/roof/0003\.jpg: .*decoding\.on_bad_image=mark$"):
        build_in_processes(config, tmp_path / "root", InProcesses())


def test_a_worker_that_does_not_see_the_data_root_says_so(photos: Path, clip: Path, tmp_path: Path) -> None:
    unmounted = Here(lambda job: replace(job, shards=replace(job.shards, folder=Path("/nowhere/at/all.partial"))))
    with pytest.raises(PipelineError, match=r"/nowhere/at/all\.partial is not there on .*mount it"):
        build_in_processes(small_config(photos, clip), tmp_path, unmounted)


def test_a_worker_with_other_weights_says_so(photos: Path, clip: Path, tmp_path: Path) -> None:
    changed = Here(lambda job: replace(job, encoding=replace(job.encoding, digest="0" * 64)))
    with pytest.raises(PipelineError, match=r"has other weights for .*give all workers the same files"):
        build_in_processes(small_config(photos, clip), tmp_path, changed)


def test_weights_that_were_replaced_since_a_worker_loaded_them_are_loaded_again(tmp_path: Path) -> None:
    options = ClipOptions(model=write_tiny_clip(tmp_path / "clip"), precision="fp32")
    settings = Settings(data_root=tmp_path, device="cpu")
    before = encoder_for(options, settings).digest
    write_tiny_clip(tmp_path / "clip", seed=1)
    now = load_clip(options).digest
    assert now != before
    assert encoder_for(options, settings).digest == before
    assert encoder_for(options, settings, digest=now).digest == now


def test_a_daemon_which_may_start_no_process_decodes_by_itself(
    one_process: FlowResult, photos: Path, clip: Path, tmp_path: Path
) -> None:
    def in_a_daemon(work: Any, shards: Sequence[Any]) -> Iterator[Any]:
        with server().Pool(1) as pool:  # whose processes are daemons, as Dask's are by default
            yield from pool.imap(work, [shards])

    made = build_in_processes(small_config(photos, clip), tmp_path, in_a_daemon, workers=1)
    assert made["tokenize_images"].artifact.digest == one_process["tokenize_images"].artifact.digest


SCHEMA = pa.schema([("row", pa.int64())])


def test_two_writers_of_one_shard_leave_it_whole_and_done(tmp_path: Path) -> None:
    shards, batch = ShardFolder(tmp_path, "f"), pa.record_batch([pa.array([1, 2])], schema=SCHEMA)
    with shards.write(0, {"part": SCHEMA}) as slow:
        with shards.write(0, {"part": SCHEMA}) as fast:
            slow["part"].write_batch(batch)
            fast["part"].write_batch(batch)
        assert shards.is_done(0)
        with shards.write(0, {"part": SCHEMA}) as third:
            assert shards.is_done(0), "a shard that was done stays done while somebody writes it again"
            third["part"].write_batch(batch)
    assert shards.is_done(0)
    assert shards.read("part", 0)["row"].to_pylist() == [1, 2]
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["00000.arrow", "00000.json"]


def test_a_writer_that_comes_after_the_artifact_was_published_leaves_nothing(tmp_path: Path) -> None:
    shards = ShardFolder(tmp_path / "a.partial", "f")
    with pytest.raises(FileNotFoundError), shards.write(0, {"part": SCHEMA}):
        pass
    assert list(tmp_path.iterdir()) == []


@given(st.integers(1, 3000), st.integers(1, 300))
def test_groups_are_neighbours_and_a_few_for_every_worker(shards: int, workers: int) -> None:
    groups = in_groups(range(shards), workers=workers)
    assert [shard for group in groups for shard in group] == list(range(shards))
    assert len(groups) <= min(4 * workers, 400)
    assert len(groups) >= min(shards, 2 * workers, 200)


def test_an_address_without_a_scheduler_is_refused_with_one_sentence(tmp_path: Path) -> None:
    settings = Settings(data_root=tmp_path, dask_address="tcp://127.0.0.1:9")
    wanted = "settings.dask_address=tcp://127.0.0.1:9: no Dask scheduler answers"
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(PipelineError, match=wanted),
        dask_cluster(settings),
    ):
        pass


def test_the_setting_alone_makes_a_workspace_use_dask(tmp_path: Path) -> None:
    settings = Settings(data_root=tmp_path, dask_address="local")
    assert Workspace(settings).made().shard_mapper == DaskShards(settings)
    assert Workspace(Settings(data_root=tmp_path)).made().shard_mapper is None


def test_workers_of_a_local_cluster_share_the_cores_that_decode(tmp_path: Path) -> None:
    local = Settings(data_root=tmp_path, dask_address="local", dask_workers=1000)
    assert local.of_dask_worker().decoding_processes == 1
    elsewhere = Settings(data_root=tmp_path, dask_address="tcp://host:8786", dask_workers=1000)
    assert elsewhere.of_dask_worker().workers == -1, "each of them has a machine, or its part of one, for itself"
