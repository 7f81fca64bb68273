"""What people see in the browser: MLflow compares pre-trainings, Prefect shows runs, their stages, and forms."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow import MlflowClient

from pipeline.configuration.config import PretrainConfig
from pipeline.configuration.overrides import apply_overrides
from pipeline.configuration.presets import PRESETS
from pipeline.engine.mlflow_tracker import tracking_uri
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import Workspace
from tests.flows.browser import needs_browser, shown_text
from tests.flows.conftest import Worker
from tests.flows.prefect_server import FlowRun
from tests.mlflow_server import MlflowServer
from tests.stages import TokenizedImages, pretrain
from tests.trainings import SMALL as SMALL_PRETRAINING
from tests.trainings import tokenize_photos

pytestmark = [pytest.mark.servers, needs_browser]

OBJECTIVES = ("mim", "pim", "mapet")


@dataclass(frozen=True)
class Compared:
    """An MLflow server with the three pre-trainings of one experiment."""

    url: str
    experiment: str
    runs: tuple[str, ...]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chromium")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compared]:
    folder = tmp_path_factory.mktemp("compared")
    built = tokenize_photos(folder / "build")
    settings = Settings(data_root=folder / "data", device="cpu", workers=0)
    for objective in OBJECTIVES:
        _pretrain(objective, built, settings)
    client = MlflowClient(tracking_uri(settings))
    experiment = client.get_experiment_by_name("mapet-pretrain")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    with MlflowServer(settings.layout.tracking_database.parent) as server:
        yield Compared(server.url, experiment.experiment_id, tuple(run.info.run_id for run in found))


def _pretrain(objective: str, built: TokenizedImages, settings: Settings) -> None:
    config = apply_overrides(PretrainConfig(), [*SMALL_PRETRAINING, f"pretrain.objective={objective}"])
    with Workspace(settings).tracked(f"pretrain {objective}", config) as workspace:
        pretrain(config, built, workspace)


def test_mlflow_compares_the_three_objectives_run_by_run(compared: Compared, profile: Path) -> None:
    runs, experiments = quote(json.dumps(compared.runs)), quote(json.dumps([compared.experiment]))
    url = f"{compared.url}/#/compare-runs?runs={runs}&experiments={experiments}"
    names = tuple(f"pretrain {objective} vit_demo" for objective in OBJECTIVES)
    page = shown_text(url, profile, until=(*names, "val_token_accuracy"))
    assert "Comparing 3 Runs" in page
    assert page.index(names[0]) < page.index(names[1]) < page.index(names[2])
    for same in ("loss", "token_loss", "token_accuracy", "learning_rate", "gradient_norm", "images_per_second"):
        assert f"\n{same}\n" in page, f"{same} is no row of the comparison"
    assert "\nmim\npim\nmapet\n" in page, "the parameter `objective` is a row in which the runs differ"


def test_mlflow_draws_the_curves_of_all_runs_in_their_colours(compared: Compared, profile: Path) -> None:
    url = f"{compared.url}/#/experiments/{compared.experiment}/runs?compareRunsMode=CHART"
    names = tuple(f"pretrain {objective} vit_demo" for objective in OBJECTIVES)
    page = shown_text(url, profile, until=(*names, "token_loss"))
    assert "\n3\n" in page
    assert "matching runs" in page


def test_prefect_shows_a_run_with_its_stages(
    first_runs: tuple[FlowRun, FlowRun], worker: Worker, profile: Path
) -> None:
    run, _ = first_runs
    page = shown_text(
        f"{_pages(worker)}/runs/flow-run/{run['id']}", profile, until=(run["name"], "Completed", "tokenize_images")
    )
    assert "kclip-build" in page


def test_prefect_lists_every_preset_as_a_deployment(worker: Worker, profile: Path) -> None:
    page = shown_text(f"{_pages(worker)}/deployments", profile, until=("kclip-build", "dalle", "fit_vqkd"))
    deployed = worker.server.post("/deployments/count", {})  # another test may have made one of its own
    assert deployed >= sum(len(named) for named in PRESETS.values())
    assert f"\n{deployed} Deployments\n" in page, page[:1500]


def test_prefects_form_has_every_section_with_its_help(worker: Worker, profile: Path) -> None:
    deployment = worker.server.get("/deployments/name/kclip-build/demo")
    url = f"{_pages(worker)}/deployments/deployment/{deployment['id']}/run"
    page = shown_text(url, profile, until=("Sample Fraction", "Vocabulary", "Validate parameters"))
    assert "What makes their tokens" in page, "the help of an option that selects"
    assert "Share of all patches that k-means clusters" in page, "the help of an option inside a section"
    assert "written as on the command line" in page, "the help of `overrides`"


def _pages(worker: Worker) -> str:
    return worker.server.url.removesuffix("/api")
