"""Shards of images on real Dask clusters: by Prefect's task runner, with a worker killed, and without Prefect."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from distributed.process import AsyncProcess

from pipeline.chains.graph import FlowResult
from pipeline.configuration.config import KClipBuildConfig
from pipeline.engine.errors import PipelineError
from pipeline.engine.scale_out import DaskShards
from pipeline.engine.settings import LOCAL_DASK, Settings
from pipeline.engine.workspace import Workspace
from storage.artifact import Artifact, read_artifact
from tests.builds import build, make_photos, small_config
from tests.flows.prefect_server import FlowRun, PrefectServer, wait_for
from tests.stages import kclip_build

STAGES = ("index_images", "extract_features", "fit_codebook", "tokenize_images")

# Runs the flow, and kills the first worker that is seen writing a shard: a shard's temporary files name their process.
# Then asks a worker of a local cluster, as Prefect's task runner starts it, what it is.
SCRIPT = """\
import json, multiprocessing, os, signal, sys, threading, time
from pathlib import Path
from prefect import flow
from flows.kclip_build import kclip_build
from flows.scale_out import PrefectShards
from pipeline.configuration.config import KClipBuildConfig
from pipeline.engine.settings import Settings

root, killed = Path(os.environ["MAPET_DATA_ROOT"]), {}

def kill_one():
    while not killed:
        time.sleep(0.001)
        for path in root.glob("extract_features/*.partial/features/*.tmp"):
            process = int(path.name.split(".")[2].split("-")[0])
            os.kill(process, signal.SIGKILL)
            done = path.parents[1].glob("units/*.json")
            killed.update(shard=path.name[:5], process=process, done={one.name: one.stat().st_ino for one in done})
            return

def what_it_is(shards):
    from distributed import get_worker
    return get_worker().address, multiprocessing.current_process().daemon, list(shards)

@flow
def ask():
    return list(PrefectShards(Settings(dask_address="local", dask_workers=1))(what_it_is, [1, 2]))

if __name__ == "__main__":
    threading.Thread(target=kill_one, daemon=True).start()
    state = kclip_build(KClipBuildConfig(**json.loads(sys.argv[1])), return_state=True)
    print(json.dumps({"run": str(state.state_details.flow_run_id), "local": ask(), **killed}))
"""


@dataclass(frozen=True)
class KilledRun:
    """A flow run that lost a worker in the middle of a shard."""

    run: FlowRun
    root: Path
    shard: str
    done: dict[str, int]  # records of the shards that were finished then, with their inodes
    local: list[Any]  # what workers of a local cluster said

    def artifact(self, stage: str) -> Artifact:
        (record,) = (self.root / stage).glob("*/artifact.json")
        return read_artifact(record.parent)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> KClipBuildConfig:
    folder = tmp_path_factory.mktemp("photos")
    return small_config(make_photos(folder / "images"), folder / "clip")


@pytest.fixture(scope="module")
def one_process(config: KClipBuildConfig, tmp_path_factory: pytest.TempPathFactory) -> FlowResult:
    return build(config, tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a cluster that somebody else has started."""
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        yield cluster.scheduler_address
        cluster.wait_for_workers(2, timeout=60)  # it fails when it ends while it starts a killed one again


@pytest.fixture(scope="module")
def killed(
    server: PrefectServer, scheduler: str, config: KClipBuildConfig, tmp_path_factory: pytest.TempPathFactory
) -> KilledRun:
    root = tmp_path_factory.mktemp("killed")
    settings = {"DATA_ROOT": str(root), "DASK_ADDRESS": scheduler, "BATCH_SIZE": "4"}
    environment = {**server.environment, **{f"MAPET_{name}": value for name, value in settings.items()}}
    words = ("-c", SCRIPT, json.dumps(config.model_dump(mode="json")))
    done = PrefectServer(server.url, environment).python(*words, folder=root)
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return KilledRun(server.ended(said["run"]), root, said["shard"], said["done"], said["local"])


@pytest.mark.servers
def test_a_flow_that_loses_a_worker_completes_with_the_bytes_of_one_process(
    killed: KilledRun, one_process: FlowResult
) -> None:
    assert killed.run["state"]["type"] == "COMPLETED", killed.run["state"]
    for stage in STAGES:
        assert killed.artifact(stage).digest == one_process[stage].artifact.digest


@pytest.mark.servers
def test_shards_that_were_finished_when_the_worker_died_are_not_encoded_again(killed: KilledRun) -> None:
    records = {path.name: path.stat().st_ino for path in killed.artifact("extract_features").path.glob("units/*.json")}
    assert f"{killed.shard}.json" in records.keys() - killed.done.keys()
    assert killed.done.items() <= records.items()


@pytest.mark.servers
def test_groups_of_shards_are_task_runs_of_the_flow(server: PrefectServer, killed: KilledRun) -> None:
    of_run = {"task_runs": {"flow_run_id": {"any_": [killed.run["id"]]}}}

    def states() -> Counter[tuple[str, str]] | None:
        found = [task for task in server.post("/task_runs/filter", of_run) if task["name"].startswith("shards-")]
        ended = Counter((task["name"], task["state"]["type"]) for task in found)
        return ended if ended.total() == 11 else None

    groups = wait_for("the task runs of two stages", states, 30)
    # 5 shards with images of the split that is sampled, 6 with any, a task for each as there are 2 workers.
    assert groups == {("shards-5", "COMPLETED"): 1, **{(f"shards-{group}", "COMPLETED"): 2 for group in range(5)}}


def test_the_workers_of_a_scheduler_make_the_same_bytes(
    scheduler: str, config: KClipBuildConfig, one_process: FlowResult, tmp_path: Path
) -> None:
    settings = Settings(data_root=tmp_path, device="cpu", workers=0, batch_size=4, dask_address=scheduler)
    made = kclip_build(config, Workspace(settings))
    for stage in STAGES:
        assert made[stage].artifact.digest == one_process[stage].artifact.digest


@pytest.mark.servers
def test_a_local_cluster_is_reachable_from_this_machine_only_and_only_with_its_keys(killed: KilledRun) -> None:
    assert sorted(shards for _, _, shards in killed.local) == [[1], [2]]
    for address, daemon, _ in killed.local:
        assert address.startswith("tls://127.0.0.1:")
        assert not daemon, "its processes could not decode images"


@pytest.mark.parametrize("cluster", ["scheduler", "local"])
def test_shards_that_kill_every_worker_are_given_up_with_one_sentence(
    cluster: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(shards: Sequence[int]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)  # as Linux does when memory is short

    start = AsyncProcess.start

    async def start_slowly(process: AsyncProcess) -> None:
        await asyncio.sleep(1)  # a local cluster is told to end while it starts the last of them again
        await start(process)

    monkeypatch.setattr(AsyncProcess, "start", start_slowly)
    address = request.getfixturevalue("scheduler") if cluster == "scheduler" else LOCAL_DASK
    shards = DaskShards(Settings(data_root=tmp_path, dask_address=address, dask_workers=2))
    with pytest.raises(PipelineError, match=r"4 workers .* died .*settings\.batch_size smaller.*what is done is kept$"):
        list(shards(too_large, [1]))
