"""Shards of images encoded by other processes than the stage's, without Dask: the same bytes, and nothing done
twice."""

import errno
import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
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
from pipeline.engine.gpu_shards import GpuShards
from pipeline.engine.logs import log_to_stderr
from pipeline.engine.map_shards import MapShards, in_groups
from pipeline.engine.scale_out import DaskShards, dask_cluster
from pipeline.engine.settings import Settings
from pipeline.engine.shard_mappers import settings_of_worker
from pipeline.engine.workspace import Workspace
from storage.shards import ShardFolder
from tests.builds import build, make_photos, small_config
from tests.forked import call, server, start
from tests.stages import kclip_build
from tests.tiny_clip import write_tiny_clip

STAGES = ("index_images", "extract_features", "fit_codebook", "tokenize_images")


IN_TWO = GpuShards(("0", "1"))  # that there are no such GPUs matters to nobody who computes on the CPU


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


def build_in_two(config: KClipBuildConfig, root: Path, **settings: Any) -> dict[str, Any]:
    """Build with a process for each of two GPUs; returns what was made, by stage."""
    made = build_in_processes(config, root, IN_TWO, **settings)
    return {stage: (made[stage].artifact.digest, made[stage].artifact.notes) for stage in STAGES}


def test_a_process_for_each_gpu_makes_the_same_bytes(
    one_process: FlowResult, photos: Path, clip: Path, tmp_path: Path
) -> None:
    config, said = small_config(photos, clip), tmp_path / "said"
    made = call(said, build_in_two, config, tmp_path / "root", workers=1)
    for stage in STAGES:
        assert made[stage][0] == one_process[stage].artifact.digest
    assert made["extract_features"][1]["images_per_second"] > 0


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
        call(tmp_path / "said", build_in_two, config, tmp_path / "root")


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


Numbers = Sequence[int]


def spread(work: Callable[[Numbers], Any], shards: int = 16) -> list[Any]:
    """Return what two processes make of groups of two numbers each."""
    log_to_stderr()
    return list(IN_TWO(work, range(shards)))


def where(numbers: Numbers) -> dict[str, Any]:
    logging.getLogger("mapet.stages").warning("here is little room")
    sys.stdout.write("this is no answer\n")
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return {"numbers": list(numbers), "process": os.getpid(), **{name: os.environ[name] for name in names}}


def test_processes_share_gpus_and_cores_and_say_once_what_all_of_them_say(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        found = call(tmp_path, spread, where)
    assert sorted(number for one in found for number in one["numbers"]) == list(range(16))
    assert len({one["process"] for one in found}) == 2
    assert {one["CUDA_VISIBLE_DEVICES"] for one in found} == {"0", "1"}
    assert {int(one["OMP_NUM_THREADS"]) for one in found} == {max(1, len(os.sched_getaffinity(0)) // 2)}
    said = (tmp_path / "err").read_text().splitlines()
    assert said.count("images are encoded by 2 processes, a GPU each") == 1
    assert said.count("here is little room") == 1


def be_killed(numbers: Numbers) -> None:
    if 5 in numbers:
        os.kill(os.getpid(), signal.SIGKILL)  # as Linux does when memory is short


def leave(numbers: Numbers) -> None:
    if 5 in numbers:
        sys.stderr.write("a library gives up\n")
        os._exit(7)


def stumble(numbers: Numbers) -> None:
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("work", "sentence"),
    [
        (
            be_killed,
            r"was killed by SIGKILL, as Linux does .*settings\.workers or settings\.batch_size to less; what",
        ),
        (leave, r"^a process that encodes images died \(exit code 7\); what it said is above; what is done is kept"),
    ],
)
def test_a_process_that_dies_is_one_sentence(work: Callable[[Numbers], Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=sentence):
        call(tmp_path, spread, work)
    assert "Traceback" not in (tmp_path / "err").read_text()


def test_a_bug_in_a_process_tells_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="no such thing") as raised:
        call(tmp_path, spread, stumble)
    assert "in stumble" in raised.value.__notes__[0]


def stay(folder: Path, numbers: Numbers) -> None:
    """Stay, with a process that decodes as long as its parent is there."""
    worker = os.getpid()
    if not os.fork():
        while os.getppid() == worker:
            (folder / f"{os.getpid()}").touch()
            time.sleep(0.1)
        os._exit(0)
    (folder / f"{worker}").touch()
    signal.pause()


def spread_and_stay(folder: Path) -> None:
    with suppress(KeyboardInterrupt):
        spread(partial(stay, folder))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_one_that_it_works_for(number: signal.Signals, tmp_path: Path) -> None:
    at_work = tmp_path / "at work"
    at_work.mkdir()
    caller = start(tmp_path, spread_and_stay, at_work)
    caller.wait_until(lambda: len(list(at_work.iterdir())) == 4)
    caller.send(number)
    assert caller.wait(20) == (0 if number == signal.SIGINT else -number)
    deadline = time.monotonic() + 20
    while any(Path("/proc", path.name).exists() for path in at_work.iterdir()):
        assert time.monotonic() < deadline, "a process stayed"
        time.sleep(0.01)
    assert "Traceback" not in caller.err


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
    settings = Settings(data_root=tmp_path, dask_address="local", device="cpu")
    assert Workspace(settings).made().shard_mapper == DaskShards(settings)
    assert Workspace(Settings(data_root=tmp_path)).made().shard_mapper is None


def test_workers_of_a_local_cluster_share_the_cores_that_decode(tmp_path: Path) -> None:
    local = Settings(data_root=tmp_path, dask_address="local", dask_workers=1000)
    assert settings_of_worker(local).decoding_processes == 1
    elsewhere = Settings(data_root=tmp_path, dask_address="tcp://host:8786", dask_workers=1000)
    assert settings_of_worker(elsewhere).workers == -1, "each of them has a machine, or its part of one, for itself"
