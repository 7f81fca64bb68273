"""Places on GPUs, as a real server gives them: who takes one, who waits, and a server that is away."""

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.gpu_places import GPU_LIMIT, places_held, provide_gpu_limit
from flows.services.catalogue import prefect_server
from flows.services.settings import ServiceSettings, gpus_of_workers
from flows.stages import STAGES
from tests.flows.prefect_server import PrefectServer, free_port, wait_for


def at(url: str) -> AbstractContextManager[object]:
    return temporary_settings({PREFECT_API_URL: url})


@pytest.fixture
def client(server: PrefectServer) -> Iterator[SyncPrefectClient]:
    """Of the server, which has no limit yet."""
    with at(server.url), get_client(sync_client=True) as client:
        yield client
        client.delete_global_concurrency_limit_by_name(GPU_LIMIT)


def taken(client: SyncPrefectClient) -> int:
    return client.read_global_concurrency_limit_by_name(GPU_LIMIT).active_slots


def test_index_and_report_compute_on_no_gpu() -> None:
    on_device = {stage.NAME for stage in STAGES if stage.USES_GPU}
    assert on_device == {"extract_features", "fit_codebook", "fit_vqkd", "tokenize_images", "pretrain", "evaluate"}


@pytest.mark.servers
def test_the_limit_is_made_where_there_are_gpus_and_kept_as_it_was_set(client: SyncPrefectClient) -> None:
    assert provide_gpu_limit(client, 0) == ""
    assert provide_gpu_limit(client, 2) == "concurrency limit gpu: 2 places"
    assert provide_gpu_limit(client, 2) == ""
    assert provide_gpu_limit(client, 4).startswith(
        "the concurrency limit gpu keeps its 2 places, as set in Prefect; for"
    )
    assert client.read_global_concurrency_limit_by_name(GPU_LIMIT).limit == 2


@pytest.mark.servers
def test_a_stage_holds_as_many_places_as_gpus_but_no_more_than_there_are(client: SyncPrefectClient) -> None:
    provide_gpu_limit(client, 3)
    with places_held(2, "pretrain"):
        assert taken(client) == 2
    assert taken(client) == 0
    with places_held(4, "pretrain"):
        assert taken(client) == 3


@pytest.mark.servers
def test_a_stage_that_fails_gives_its_place_back(client: SyncPrefectClient) -> None:
    provide_gpu_limit(client, 1)

    def fail() -> None:
        with places_held(1, "pretrain"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert taken(client) == 0


@pytest.mark.servers
def test_a_stage_says_that_it_waits_for_a_place_and_takes_it_when_it_is_free(
    server: PrefectServer, client: SyncPrefectClient, caplog: pytest.LogCaptureFixture
) -> None:
    provide_gpu_limit(client, 1)
    began = threading.Event()

    def other() -> None:
        with at(server.url), places_held(1, "evaluate"):
            began.set()

    thread = threading.Thread(target=other)
    with caplog.at_level(logging.INFO, "mapet.stages"):
        with places_held(1, "pretrain"):
            thread.start()
            wait_for("what is said", lambda: "evaluate waits for 1 place on GPUs: 1 of 1 are taken" in caplog.text, 30)
            assert not began.is_set()
        thread.join(60)
    assert began.is_set()
    assert taken(client) == 0


def test_leases_of_places_outlive_the_server() -> None:
    """Those in its memory, the default, would be forgotten when it is started again, and their places never free."""
    storage = prefect_server(ServiceSettings()).environment["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"]
    assert "storage_path" in vars(import_module(storage).ConcurrencyLeaseStorage())


def test_a_server_that_is_away_stops_no_stage(caplog: pytest.LogCaptureFixture) -> None:
    with at(f"http://127.0.0.1:{free_port()}/api"), places_held(1, "pretrain"):
        assert "computing without a place on a GPU, as Prefect's server gives none" in caplog.text


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0), ("cuda:1", 1)])
def test_a_machine_whose_device_is_chosen_has_one_gpu_or_none(device: str, gpus: int, tmp_path: Path) -> None:
    assert gpus_of_workers(ServiceSettings(device=device, data_root=tmp_path)) == gpus
