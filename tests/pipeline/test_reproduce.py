"""The grid of a reproduction: its cells, what they share, and what happens when one of them fails."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.chains.by_name import CHAINS
from pipeline.chains.graph import FlowResult, Node
from pipeline.chains.grid import pretrained_cells, scratch_cells
from pipeline.chains.plan import plan, total_words
from pipeline.chains.run import run as run_chain
from pipeline.configuration.config import KClipBuildConfig, ReproduceConfig
from pipeline.configuration.overrides import apply_overrides
from pipeline.configuration.presets import PRESETS, preset
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.workspace import StageResult, Workspace
from storage.artifact import read_artifact
from tests.builds import make_photos, small_config
from tests.stages import reproduce
from tests.trainings import SMALL

SMALL_GRID = (
    *SMALL,
    "grid.title=small",
    'grid.objectives=["mim","mapet"]',
    'grid.tokens_only=["random"]',
    'evaluate.protocols=["frozen_features","transfer","tokens_as_input"]',
    *(
        f"{protocol}.training.{option}"
        for protocol in ("frozen_features", "transfer", "tokens_as_input")
        for option in ("epochs=2", "batch_size=16", "warmup_epochs=0", "precision=fp32")
    ),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ReproduceConfig:
    folder = tmp_path_factory.mktemp("reproduced")
    built = small_config(make_photos(folder / "photos"), folder / "clip")
    sections = {name: getattr(built, name) for name in type(built).model_fields}
    other = make_photos(folder / "other", train=10, val=4, seed=1)
    return apply_overrides(ReproduceConfig(**sections), [*SMALL_GRID, f"transfer.folder={other}"])


def run(config: ReproduceConfig, root: Path) -> FlowResult:
    return reproduce(config, Workspace(Settings(data_root=root, device="cpu", workers=0)))


def states(config: ReproduceConfig, root: Path) -> dict[str, str]:
    settings = Settings(data_root=root, device="cpu", workers=0)
    return {stage.stage: stage.state for stage in plan("reproduce", config, settings)}


@pytest.fixture(scope="module")
def reproduced(config: ReproduceConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[FlowResult, Path]:
    root = tmp_path_factory.mktemp("reproduced")
    return run(config, root), root


def names_of(config: KClipBuildConfig) -> list[str]:
    """Return the names of the nodes of its graph."""
    return CHAINS["reproduce"].graph(config).names


def test_the_calls_are_those_that_the_plan_expects(
    config: ReproduceConfig, reproduced: tuple[FlowResult, Path]
) -> None:
    result, root = reproduced
    assert not result.failures
    assert set(states(config, root).values()) == {"cached"}
    assert len(result.results) == len(names_of(config)), "what cells share is called once"
    assert names_of(config) == [
        "index_images",
        "extract_features",
        "fit_codebook",
        "tokenize_images",
        "evaluate-tokens_as_input",
        "pretrain-mim",
        "evaluate-frozen_features-mim",
        "index_images-folder",
        "evaluate-transfer_folder-mim",
        "pretrain-mapet",
        "evaluate-frozen_features-mapet",
        "evaluate-transfer_folder-mapet",
        "extract_features-random",
        "fit_codebook-random",
        "tokenize_images-random",
        "evaluate-tokens_as_input-random",
        "evaluate-frozen_features-scratch",
        "report",
    ]


def test_the_report_compares_all_of_them(reproduced: tuple[FlowResult, Path]) -> None:
    made = reproduced[0]["report"].artifact
    with (made.path / "results.csv").open(newline="") as lines:
        ours = [row for row in csv.DictReader(lines) if row["ours"]]
    assert {row["preset"] for row in ours} == {"small"}
    found = {(row["metric"], row["method"], row["tokenizer"], row["data"].split(",")[0]) for row in ours}
    for method, tokenizer in (("MIM", "k-CLIP"), ("MaPeT", "k-CLIP"), ("ViT", "none")):
        assert ("knn_top1", method, tokenizer, "own images") in found
        probed = ("linear_probe_top1[folder]", method, tokenizer, "folder")
        assert (probed in found) == (method != "ViT"), "nobody learned what a probe of random weights could find"
    for tokenizer in ("k-CLIP", "random encoder"):
        assert ("top1_tokens_as_input", "classifier on discrete tokens", tokenizer, "own images") in found
    text = (made.path / "report.md").read_text()
    assert "| k-NN, top-1 | vit\\_demo | **" in text, "who leads"


def test_a_failed_cell_does_not_keep_the_others_from_running(config: ReproduceConfig, tmp_path: Path) -> None:
    def fail_once(node: Node, make: Callable[[], StageResult]) -> StageResult:
        if node.name == "pretrain-mim":
            raise PipelineError("the loss is not finite")
        return make()

    result = reproduce(config, Workspace(Settings(data_root=tmp_path, device="cpu", workers=0)), fail_once)
    [failure] = result.failures
    assert (failure.part, failure.reason) == ("mim, and its evaluations", "the loss is not finite")
    made = [one.label for one in result.results]
    assert "pretrain mapet vit_demo" in made
    assert "report" in made
    assert not any("mim" in label for label in made)
    assert not result.all_cached


def told(result: FlowResult) -> str:
    """Return the page, of which no number may be one that nobody has."""
    made = result["report"].artifact.path
    text = (made / "report.md").read_text()
    assert "None" not in text
    assert (made / "report.html").exists()
    return text


def test_a_report_is_made_where_every_pretraining_failed(
    config: ReproduceConfig, reproduced: tuple[FlowResult, Path]
) -> None:
    broken = apply_overrides(config, ["training.peak_learning_rate=9e37"])
    result = run(broken, reproduced[1])
    assert [failure.part.partition(",")[0] for failure in result.failures] == ["mim", "mapet"]
    text = told(result)
    assert "## Pre-training" not in text
    assert "scratch" in text


def test_a_report_is_made_of_tokens_alone(config: ReproduceConfig, reproduced: tuple[FlowResult, Path]) -> None:
    chosen = ["grid.objectives=[]", "grid.scratch=false", 'evaluate.protocols=["tokens_as_input"]']
    text = told(run(apply_overrides(config, chosen), reproduced[1]))
    assert "## Tokenizers" in text
    assert "## Pre-training" not in text


def test_a_report_is_made_of_tokens_that_were_given(
    config: ReproduceConfig, reproduced: tuple[FlowResult, Path]
) -> None:
    result, root = reproduced
    tokens = result["tokenize_images"].artifact
    chosen = [f"pretrain.tokens={tokens.path}", 'grid.objectives=["mim"]', "grid.tokens_only=[]", "grid.scratch=false"]
    given = apply_overrides(config, chosen)
    again = run(given, root)
    assert len(again.results) == len(names_of(given))
    text = told(again)
    assert tokens.fingerprint in text
    assert "With MIM, a Vision Transformer learned" in text


def test_a_grid_of_pretrainings_in_steps_is_evaluated_and_reported(
    config: ReproduceConfig, reproduced: tuple[FlowResult, Path]
) -> None:
    steps = ["training.epochs=null", "training.steps=3", "training.warmup_epochs=0"]
    steps += ["frozen_features.training.epochs=null", "frozen_features.training.steps=3"]
    chosen = ['grid.objectives=["mim"]', "grid.tokens_only=[]", 'evaluate.protocols=["frozen_features"]']
    result = run(apply_overrides(config, [*steps, *chosen]), reproduced[1])
    assert not result.failures
    assert "| 3 steps |" in told(result)
    assert "None" not in (result["report"].artifact.path / "results.csv").read_text()


def test_a_plan_of_a_grid_looks_at_every_cell(
    config: ReproduceConfig, reproduced: tuple[FlowResult, Path], tmp_path: Path
) -> None:
    _, root = reproduced
    longer = apply_overrides(config, ["training.epochs=3", "grid.seeds=[0,1]"])
    planned = {stage.stage: stage for stage in plan("reproduce", longer, Settings(data_root=root, workers=0))}
    assert planned["evaluate-tokens_as_input-seed0"].state == "cached"
    assert planned["evaluate-tokens_as_input-seed1"].state == "run"
    for cell in ("mim-seed0", "mapet-seed1"):
        assert planned[f"pretrain-{cell}"].state == "run"
        waiting = planned[f"evaluate-frozen_features-{cell}"]
        assert (waiting.state, waiting.reason) == ("after", f"needs pretrain-{cell} first")
    cost = planned["pretrain-mapet-seed1"].cost
    assert cost is not None
    assert cost.images == 3 * 7 * 8, "epochs, steps, images a step"
    assert cost.device_hours == pytest.approx(_seconds(root, "mapet", epochs=3) / 3600)
    assert cost.words.endswith(" of 1 x CPU")
    assert "of them trainings: " in total_words(list(planned.values()))
    assert total_words(plan("reproduce", config, Settings(data_root=root, workers=0))) == ""
    assert states(longer, tmp_path)["pretrain-mim-seed0"] == "after", "nothing is there yet"


def _seconds(root: Path, objective: str, *, epochs: int) -> float:
    """Return the seconds of as many epochs as those that two took, with all that does not grow with them."""
    made = [read_artifact(path.parent) for path in root.glob("pretrain/*/artifact.json")]
    notes = next(one.notes for one in made if one.recipe.options["objective"] == objective)
    in_epochs = sum(part["seconds"] for part in notes["parts"].values())
    return float(notes["seconds"]) + in_epochs * (epochs / 2 - 1)


def test_every_combination_is_a_cell_of_its_own() -> None:
    config = apply_overrides(preset("reproduce", "table6"), ["grid.seeds=[0,1]"])
    assert isinstance(config, ReproduceConfig)
    names = [cell.name for cell in pretrained_cells(config.grid)]
    assert names == [f"mapet-c{cut}-seed{seed}" for cut in (30, 40, 50, 60, 98) for seed in (0, 1)]
    configured = pretrained_cells(config.grid)[3].configure(config)
    assert configured.objectives.mapet.cutting_point == 40  # type: ignore[attr-defined]
    assert (configured.backbone.name, configured.pretrain.objective) == ("vit_base", "mapet")
    assert (configured.pretrain.seed, configured.fine_tune.seed) == (1, 1)


def test_each_backbone_gets_what_the_paper_gives_it() -> None:
    config = preset("reproduce", "table2")
    assert isinstance(config, ReproduceConfig)
    cells = {
        cell.name: cell.configure(config) for cell in (*pretrained_cells(config.grid), *scratch_cells(config.grid))
    }
    assert len(cells) == 2 * 9 + 3
    assert cells["mapet-kclip-vit_tiny"].objectives.mapet.cutting_point == 50  # type: ignore[attr-defined]
    assert cells["mapet-vqkd-vit_base"].objectives.mapet.cutting_point == 60  # type: ignore[attr-defined]
    for name, epochs, rate, decay in (
        ("tiny", 300, 2.5e-4, 1.0),
        ("small", 200, 5e-3, 0.65),
        ("base", 100, 5e-4, 0.65),
    ):
        tuned = cells[f"cae-kclip-vit_{name}"].fine_tune
        assert (tuned.training.epochs, tuned.training.peak_learning_rate, tuned.layer_decay) == (epochs, rate, decay)


@pytest.mark.parametrize("backbone", ["vit_tiny", "vit_small", "vit_base"])
def test_from_scratch_every_backbone_is_trained_by_deits_recipe(backbone: str) -> None:
    """Touvron et al., Table 9; the paper gives none. A pre-trained network's has layer decay: 0.0037 of the rate."""
    config = preset("reproduce", "table2")
    assert isinstance(config, ReproduceConfig)
    [cell] = [cell for cell in scratch_cells(config.grid) if cell.backbone == backbone]
    tuned = cell.configure(config).fine_tune
    training = tuned.training
    assert (training.epochs, training.warmup_epochs, training.batch_size) == (300, 5, 1024)
    assert training.peak_learning_rate == 5e-4 * training.batch_size / 512
    assert (training.weight_decay, training.gradient_clip) == (0.05, None)
    assert (training.first_learning_rate, training.lowest_learning_rate) == (1e-6, 1e-5)
    assert (tuned.layer_decay, tuned.drop_path_rate, tuned.smoothing) == (1.0, 0.1, 0.1)
    assert (tuned.auto_augment, tuned.mixup, tuned.cutmix) == ("rand-m9-mstd0.5-inc1", 0.8, 1.0)
    assert (tuned.erasing, tuned.repeats, tuned.crop_pct) == (0.25, 3, 0.875)


def test_from_scratch_the_paper_prints_fine_tuning_alone_and_nothing_decays_by_layer() -> None:
    for name in ("table2", "paper"):
        config = preset("reproduce", name)
        assert isinstance(config, ReproduceConfig)
        calls = [name for name in names_of(config) if "-scratch-" in name]
        assert calls == [f"evaluate-fine_tune-scratch-{backbone}" for backbone in config.grid.backbones]
    whole = apply_overrides(config, ['grid.scratch_protocols=["segmentation","fine_tune"]', "scratch.mixup=0.5"])
    assert isinstance(whole, ReproduceConfig)
    chosen = scratch_cells(whole.grid)[0].configure(whole)
    assert chosen.evaluate.protocols == ("fine_tune", "segmentation")
    assert (chosen.segmentation.layer_decay, chosen.fine_tune.mixup) == (1.0, 0.5)
    assert pretrained_cells(whole.grid)[0].configure(whole).segmentation.layer_decay == 0.75


def test_the_demos_backbone_from_scratch_is_tuned_for_as_long_as_the_others() -> None:
    config = preset("reproduce", "demo")
    assert isinstance(config, ReproduceConfig)
    scratch, pretrained = scratch_cells(config.grid)[0].configure(config), pretrained_cells(config.grid)[0]
    assert scratch.fine_tune == pretrained.configure(config).fine_tune
    assert scratch.fine_tune.layer_decay == 1.0


def test_a_cell_is_the_pretraining_of_the_preset_of_its_name() -> None:
    """So `mapet pretrain vit_tiny` and `mapet reproduce table1` share their artifacts."""
    config = preset("reproduce", "table1")
    assert isinstance(config, ReproduceConfig)
    cell = next(cell for cell in pretrained_cells(config.grid) if cell.name == "mapet-kclip-vit_small")
    alone, configured = preset("pretrain", "vit_small"), cell.configure(config)
    for section in ("images", "tokenizer", "clip", "codebook", "backbone", "pretrain", "training", "objectives"):
        assert getattr(configured, section) == getattr(alone, section), section


def test_a_cell_is_its_pretraining_its_evaluations_and_what_they_take() -> None:
    changes = ['grid.objectives=["mim","mapet"]', 'grid.tokenizers=["kclip","pixels"]', 'grid.tokens_only=["random"]']
    evaluated = ['evaluate.protocols=["frozen_features","segmentation","fine_tune","tokens_as_input"]']
    config = apply_overrides(preset("reproduce", "demo"), [*changes, *evaluated])
    graph = CHAINS["reproduce"].graph(config)
    assert graph.cells == ("mim-kclip", "mapet-kclip", "mim-pixels", "mapet-pixels", "scratch")
    images = ["make_demo_images", "index_images"]
    cell = "mapet-pixels"
    assert graph.of_cell(cell).names == [
        *images,
        "make_demo_segmentation",
        *(f"{stage}-pixels" for stage in ("extract_features", "fit_codebook", "tokenize_images")),
        f"pretrain-{cell}",
        *(f"evaluate-{protocol}-{cell}" for protocol in ("frozen_features", "segmentation", "fine_tune")),
    ]
    assert not [name for name in graph.of_cell("scratch").names if name.startswith("pretrain")]
    with pytest.raises(PipelineError, match=r"^cell=mapet-kclap: .*mapet-kclip.* \(did you mean 'mapet-kclip'\?\)$"):
        graph.of_cell("mapet-kclap")


def test_a_cell_alone_makes_what_the_grid_makes(config: ReproduceConfig, reproduced: tuple[FlowResult, Path]) -> None:
    _, root = reproduced
    workspace = Workspace(Settings(data_root=root, device="cpu", workers=0))
    alone = run_chain(CHAINS["reproduce"].graph(config), workspace, cell="mapet")
    assert alone.all_cached
    assert {result.stage for result in alone.results} >= {"tokenize_images", "pretrain", "evaluate"}
    assert "report" not in {result.stage for result in alone.results}


def test_every_tokenizer_of_a_grid_is_built_by_its_own_stages() -> None:
    config = apply_overrides(
        preset("reproduce", "demo"),
        ['grid.tokenizers=["kclip","vqkd"]', 'grid.tokens_only=["pixels","dalle","random"]'],
    )
    assert isinstance(config, ReproduceConfig)
    stages = (
        "train_demo_clip",
        "extract_features",
        "fit_codebook",
        "fit_vqkd",
        "tokenize_images",
        "evaluate-zero_shot",
    )
    names = [name for name in names_of(config) if name.startswith(stages)]
    assert names == [
        *("train_demo_clip", "extract_features", "fit_codebook", "tokenize_images", "evaluate-zero_shot"),
        *("fit_vqkd-vqkd", "tokenize_images-vqkd"),
        *("extract_features-pixels", "fit_codebook-pixels", "tokenize_images-pixels"),
        "tokenize_images-dalle",
        *("extract_features-random", "fit_codebook-random", "tokenize_images-random"),
    ]
    learned = {cell.tokenizer for cell in pretrained_cells(config.grid)}
    assert learned == {"kclip", "vqkd"}


def test_full_takes_every_objective() -> None:
    config = apply_overrides(preset("reproduce", "demo"), ["full=true"])
    names = [name for name in names_of(config) if name.startswith("pretrain")]
    assert names == ["pretrain-mim", "pretrain-pim", "pretrain-mapet", "pretrain-beit", "pretrain-cae"]


@pytest.mark.parametrize("name", PRESETS["reproduce"])
def test_every_preset_expects_different_calls(name: str) -> None:
    config = preset("reproduce", name)
    assert isinstance(config, ReproduceConfig)
    names = names_of(config)
    assert len(names) == len(set(names))
    assert names[-1] == "report"
    assert config.grid.title == name
