"""What `plan` says before a run, against what the run then did: the calls, the trainings and the time they took."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.chains.costs import Cost, cost_of, readable_hours, total_words
from pipeline.chains.graph import FlowResult, Node
from pipeline.chains.plan import plan
from pipeline.chains.plan import total_words as total_words_of
from pipeline.chains.workloads import Workload
from pipeline.configuration.config import ReproduceConfig
from pipeline.configuration.overrides import apply_overrides
from pipeline.configuration.presets import preset
from pipeline.engine.parts import Parts, seconds_of
from pipeline.engine.settings import Settings
from pipeline.engine.stage_record import BuildNotes
from pipeline.engine.workspace import StageResult, Workspace
from tests.builds import make_photos
from tests.faults.chain import SMALL_BUILD
from tests.stages import reproduce
from tests.trainings import SMALL

PROTOCOLS = ("frozen_features", "fine_tune", "segmentation", "transfer", "tokens_as_input", "zero_shot")
GRID = (
    *SMALL_BUILD,
    *SMALL,
    "pixels.image_size=64",
    "fit_vqkd.network.width=64",
    "fit_vqkd.network.depth=1",
    "fit_vqkd.network.vocabulary=8",
    "fit_vqkd.training.epochs=2",
    "fit_vqkd.training.batch_size=8",
    "fit_vqkd.training.warmup_epochs=0",
    'grid.tokenizers=["kclip","vqkd"]',
    'grid.tokens_only=["pixels","random"]',
    'grid.objectives=["mapet"]',
    'evaluate.protocols=["{}"]'.format('","'.join(PROTOCOLS)),
    *(
        f"{protocol}.training.{option}"
        for protocol in ("frozen_features", "fine_tune", "transfer", "tokens_as_input")
        for option in ("epochs=2", "batch_size=8", "warmup_epochs=0", "precision=fp32")
    ),
    "segmentation.training.steps=6",
    "segmentation.training.warmup_steps=0",
    "segmentation.training.batch_size=4",
    "demo_segmentation.train_images=10",
    "demo_segmentation.val_images=30",
    "demo_images.limit=110",
    "demo_images.renderings=1",
)
PICTURES = ("demo_images.seed=2",)
AGAIN = ("demo_images.seed=1", "training.epochs=4", "fine_tune.training.epochs=4")  # on pictures of the same kind


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ReproduceConfig:
    other = make_photos(tmp_path_factory.mktemp("other") / "photos", train=8, val=2)
    made = apply_overrides(preset("reproduce", "demo"), [*GRID, f"transfer.folder={other}"])
    assert isinstance(made, ReproduceConfig)
    return made


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(data_root=tmp_path_factory.mktemp("priced"), device="cpu", workers=0)


@pytest.fixture(scope="module")
def first(config: ReproduceConfig, settings: Settings) -> FlowResult:
    """A run of everything, by whose parts the next one is priced."""
    return reproduce(config, Workspace(settings))


def test_every_stage_of_a_first_run_is_planned_without_a_price(config: ReproduceConfig, tmp_path: Path) -> None:
    planned = plan("reproduce", config, Settings(data_root=tmp_path, device="cpu", workers=0))
    assert {stage.state for stage in planned} == {"run", "after"}
    assert all(stage.cost and "nothing like it has run here yet" in stage.cost.words for stage in planned)


def test_a_plan_counts_and_times_what_then_runs(
    config: ReproduceConfig, settings: Settings, first: FlowResult, tmp_path: Path
) -> None:
    assert not first.failures
    other = make_photos(tmp_path / "photos", train=12, val=2, seed=1)
    again = apply_overrides(config, [*AGAIN, f"transfer.folder={other}"])
    planned = [stage for stage in plan("reproduce", again, settings) if stage.state != "cached"]
    called: list[str] = []

    def note(node: Node, make: Callable[[], StageResult]) -> StageResult:
        result = make()
        called.extend([] if result.cached else [node.name])
        return result

    result = reproduce(again, Workspace(settings), note)
    assert not result.failures
    assert [stage.stage for stage in planned] == called
    trained = [name for name in called if name.startswith(("pretrain", "fit_vqkd", "train_demo_clip", "evaluate"))]
    trained = [name for name in trained if "zero_shot" not in name]
    assert [stage.stage for stage in planned if stage.cost and stage.cost.trains] == trained
    assert f"{len(called)} stages to run, {len(trained)} of them trainings: " in total_words_of(planned)
    costs = {stage.stage: stage.cost for stage in planned}
    hours = {name: cost.device_hours for name, cost in costs.items() if cost}
    assert None not in hours.values(), "every stage was priced"
    took = sum(one.artifact.notes["seconds"] for one in result.results if not one.cached)
    assert took / 2 < sum(hour or 0.0 for hour in hours.values()) * 3600 < took * 2


def test_the_tokens_of_every_tokenizer_of_a_grid_are_priced(
    config: ReproduceConfig, settings: Settings, first: FlowResult
) -> None:
    planned = {stage.stage: stage.cost for stage in plan("reproduce", apply_overrides(config, PICTURES), settings)}
    tokens = [cost for name, cost in planned.items() if name.startswith("tokenize_images")]
    assert len(tokens) == 4
    assert all(cost and cost.device_hours and (cost.images, cost.disk) == (110, 110 * 16 * 2) for cost in tokens)


def test_frozen_features_are_as_fast_as_their_slow_part(first: FlowResult) -> None:
    notes = next(one.artifact.notes for one in first.results if one.artifact.summary.get("knn_top1") is not None)
    parts = notes["parts"]
    assert set(parts) == {"features", "training", "validation", "neighbours"}
    rate = parts["features"]["amount"] / parts["features"]["seconds"]
    assert notes["images_per_second"] == pytest.approx(rate, rel=0.01)


def test_a_stage_is_priced_by_the_sum_of_its_parts() -> None:
    parts = Parts()
    parts.add("features", 100, 10.0)
    parts.add("training", 5000, 0.5)
    noted = parts.notes({"seconds": 12.5})
    notes = BuildNotes.model_validate(noted)
    assert seconds_of({"features": 1000, "training": 5000}, notes) == pytest.approx(100 + 0.5 + 2)
    assert seconds_of({"features": 0, "neighbours": 0}, notes) == pytest.approx(2)
    assert seconds_of({"neighbours": 7}, notes) is None, "nothing says how long these take"
    assert seconds_of({}, BuildNotes()) is None
    kept = Parts()
    kept.add("judging", 3, 1.0)
    assert set(kept.notes(noted)["parts"]) == {"features", "training", "judging"}


def test_costs_are_said_in_words() -> None:
    unknown = cost_of(Workload({"training": 64}, images=64, trains=True), [])
    assert unknown.words == "64 images; nothing like it has run here yet"
    known = Cost(1200, 3.25, "H100", devices=2, disk=41_000_000_000, trains=True)
    assert known.words == "1,200 images, 41.0 GB of disk, 3.2 hours of 2 x H100"
    assert Cost(device_hours=0.5).words == "30.0 minutes of this machine"
    assert readable_hours(12 / 3600) == "12 seconds"
    assert total_words([unknown, known, Cost(device_hours=0.5)]) == (
        "3 stages to run, 2 of them trainings: 3.2 hours of one H100, 30.0 minutes of this machine, 1 of a kind that "
        "has not run here yet, 41.0 GB of disk"
    )
    assert total_words([]) == ""
