"""Whether a number of ours compares with the paper's: every recorded option against the paper's presets."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.clip.encoder import outline_clip
from models.tokenizers.dalle import DalleEncoder, DalleTokenizer
from models.tokenizers.vqkd import VQKDTokenizer
from models.vqkd.checkpoint import build_vqkd
from models.vqkd.options import VQKDSizes
from pipeline.chains.grid import Cell, pretrained_cells, scratch_cells
from pipeline.chains.paper_standard import DALLE, RN50X64, VQKD, paper_standard
from pipeline.configuration.config import ReproduceConfig
from pipeline.configuration.presets import preset
from pipeline.encoding.networks import network_definition
from pipeline.engine.fingerprint import defining_options
from pipeline.stages.evaluate.scores import score, write_scores
from pipeline.stages.pretrain import pretraining_definition
from pipeline.stages.report.evaluations import our_results
from pipeline.stages.report.our_results import OurResult
from pipeline.stages.report.paper_section import paper_section, section_csv
from pipeline.stages.report.pretrainings import find_pretrainings
from pipeline.stages.report.tokenizer_builds import TokenizerBuild
from storage.artifact import Artifact, Built, Recipe
from tests.pipeline.pictures import Pictures, pictures_in

IMAGENET = {"images": 1_331_167, "train_images": 1_281_167, "classes": 1000, "shards": 1, "bytes": 1}
SAMPLED = {"images": 1, "bad_images": 0, "planned_vectors": 1, "sampled_vectors": 1, "width": 1}
Changes = Mapping[str, Any]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return pictures_in(tmp_path_factory.mktemp("pictures"), ["train/cat/0.png", "val/cat/1.png"])


def cell_of(table: str, name: str) -> tuple[Cell, Any]:
    config = preset("reproduce", table)
    assert isinstance(config, ReproduceConfig)
    [cell] = [one for one in (*pretrained_cells(config.grid), *scratch_cells(config.grid)) if one.name == name]
    return cell, cell.configure(config)


def changed(options: dict[str, Any], changes: Changes) -> dict[str, Any]:
    """Return `{"training.epochs": 3}` put into nested options."""
    options = copy.deepcopy(options)
    for name, value in changes.items():
        *sections, last = name.split(".")
        place = options
        for section in sections:
            place = place[section]
        assert last in place, name
        place[last] = value
    return options


def evaluated(pictures: Pictures, options: dict[str, Any], pretrained: Artifact | None) -> Artifact:
    def fill(folder: Path) -> Built:
        right = np.arange(100) < 60
        write_scores(folder, [score("top1", right, "")], {"top1": right})
        return Built({"top1": 60.0, "val_images": 100, "what": "made up"}, {})

    inputs = {"pretrain": pretrained.digest} if pretrained else {}
    return pictures.artifact("evaluate", options, fill, **inputs)


def result_of(
    pictures: Pictures,
    table: str,
    name: str,
    protocol: str = "fine_tune",
    *,
    encoder: str = "RN50x64-quickgelu",
    **changes: Changes,
) -> OurResult:
    """Return the result of a cell of a preset on ImageNet, had the stages that `changes` names recorded other
    options."""
    assert changes.keys() <= {"evaluation", "pretraining", "features", "codebook"}
    cell, config = cell_of(table, name)
    standard = paper_standard()
    tokens = replace(pictures.tokens("kclip"), notes={"encoder": encoder})
    recorded = {stage: dict(standard[f"{stage} kclip"]) for stage in ("extract_features", "fit_codebook")}
    stages = {
        "extract_features": replace(
            tokens,
            summary=SAMPLED,
            recipe=Recipe("extract_features", 1, changed(recorded["extract_features"], changes.get("features", {}))),
        ),
        "fit_codebook": replace(
            tokens, recipe=Recipe("fit_codebook", 1, changed(recorded["fit_codebook"], changes.get("codebook", {})))
        ),
        "tokenize_images": replace(
            tokens, recipe=Recipe("tokenize_images", 1, _without_network(standard["tokenize_images kclip"]))
        ),
    }
    learned = None
    if cell.objective != "scratch":
        sections = (getattr(config.objectives, cell.objective), config.backbone, config.training)
        definition = changed(pretraining_definition(config.pretrain, *sections), changes.get("pretraining", {}))
        learned = pictures.artifact("pretrain", definition, lambda folder: Built({}, {}), tokens=tokens.digest)
    options = {
        "protocol": protocol,
        "options": defining_options(getattr(config, protocol)),
        "backbone": defining_options(config.backbone),
        "usable_images": None,
    }
    judged = evaluated(pictures, changed(options, changes.get("evaluation", {})), learned)
    images = replace(pictures.images, summary=IMAGENET)
    trained = find_pretrainings([learned] if learned else [])
    given = (trained, {"index_images": images}, [TokenizerBuild(stages)])
    [result] = our_results([judged], *given, preset=table, standard=standard)
    return result


def _without_network(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "network"}


@pytest.mark.parametrize(
    ("table", "name", "protocol"),
    [
        ("table1", "mim-kclip-vit_tiny", "fine_tune"),
        ("table1", "mapet-kclip-vit_base", "linear_probe"),
        ("table2", "cae-kclip-vit_small", "fine_tune"),
        ("table2", "scratch-vit_small", "fine_tune"),
    ],
)
def test_a_cell_of_the_papers_presets_compares(table: str, name: str, protocol: str, pictures: Pictures) -> None:
    result = result_of(pictures, table, name, protocol)
    assert result.circumstances == ""
    assert paper_section([result]).has_comparable


def test_seeds_and_what_only_draws_curves_keep_no_number_apart(pictures: Pictures) -> None:
    drawn = {"options.seed": 5, "options.training.report_steps": 7, "options.training.validation_epochs": 3}
    given = {"evaluation": drawn, "pretraining": {"seed": 5, "training.report_steps": 7}, "codebook": {"seed": 9}}
    assert result_of(pictures, "table1", "mapet-kclip-vit_tiny", **given).circumstances == ""


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "mapet-kclip-vit_base",
            {"evaluation": {"options.training.peak_learning_rate": 0.1}},
            "fine_tune.training.peak_learning_rate 0.1 instead of 0.0005",
        ),
        (
            "mapet-kclip-vit_base",
            {"evaluation": {"options.training.batch_size": 32}},
            "fine_tune.training.batch_size 32 instead of 1024",
        ),
        (
            "mapet-kclip-vit_base",
            {"evaluation": {"options.train_fraction": 0.01}},
            "fine_tune.train_fraction 0.01 instead of 1.0",
        ),
        (
            "mapet-kclip-vit_base",
            {"evaluation": {"backbone.image_size": 96}, "pretraining": {"backbone.image_size": 96}},
            "backbone.image_size 96 instead of 224",
        ),
        ("scratch-vit_base", {"evaluation": {"options.repeats": 1}}, "scratch.repeats 1 instead of 3"),
        ("mapet-kclip-vit_base", {"pretraining": {"colour_jitter": 0.0}}, "pretrain.colour_jitter 0.0 instead of 0.4"),
        (
            "mapet-kclip-vit_base",
            {"pretraining": {"training.gradient_clip": None}},
            "training.gradient_clip none instead of 3.0",
        ),
        (
            "cae-kclip-vit_tiny",
            {"pretraining": {"objective_options.regressor_depth": 2}},
            "objectives.cae.regressor_depth 2 instead of 4",
        ),
        (
            "mapet-kclip-vit_base",
            {"features": {"sample_fraction": 0.2}},
            "features.sample_fraction 0.2 instead of 0.02",
        ),
        ("mapet-kclip-vit_base", {"codebook": {"iterations": 5}}, "codebook.iterations 5 instead of 20"),
        ("mapet-kclip-vit_base", {"encoder": "RN50x16-quickgelu"}, "tokens.network RN50x16 instead of RN50x64"),
    ],
)
def test_every_option_that_differs_is_listed_and_keeps_the_number_apart(
    name: str, changes: dict[str, Any], said: str, pictures: Pictures
) -> None:
    result = result_of(pictures, "table2", name, **changes)
    assert result.circumstances == f"ImageNet-1k, {said}"
    section = paper_section([result])
    assert not section.has_comparable
    assert list(section.apart) == [f"ImageNet-1k, {said}"]
    line = next(line for line in section_csv(section).splitlines() if said in line)
    assert ",60.0000," in line


def test_all_differences_are_listed(pictures: Pictures) -> None:
    worse = {"options.training.peak_learning_rate": 0.1, "options.training.batch_size": 32, "backbone.image_size": 96}
    found = result_of(pictures, "table2", "mapet-kclip-vit_base", evaluation=worse, codebook={"redo": 5})
    assert found.departures == (
        "fine_tune.training.batch_size 32 instead of 1024",
        "fine_tune.training.peak_learning_rate 0.1 instead of 0.0005",
        "backbone.image_size 96 instead of 224",
        "codebook.redo 5 instead of 1",
    )


def test_a_cutting_point_of_table_6_is_no_departure(pictures: Pictures) -> None:
    usual = result_of(pictures, "table2", "mapet-kclip-vit_base", pretraining={"objective_options.cutting_point": 30})
    assert (usual.circumstances, usual.cutting_point) == ("", 30)


def test_a_vqkd_that_was_trained_here_is_not_the_papers(pictures: Pictures) -> None:
    standard = paper_standard()
    recorded = _without_network(standard["tokenize_images vqkd"])

    def found(checkpoint: str, *fitted: Artifact) -> tuple[str, ...]:
        tokens = replace(pictures.tokens("vqkd"), notes={"encoder": checkpoint})
        stages = {"tokenize_images": replace(tokens, recipe=Recipe("tokenize_images", 1, recorded))}
        judged = {"protocol": "tokens_as_input", "options": standard["tokens_as_input"]["options"]}
        artifact = evaluated(pictures, {**judged, "tokens": tokens.digest}, None)
        build = TokenizerBuild({**stages, **{one.stage: one for one in fitted}})
        given = ((), {"index_images": replace(pictures.images, summary=IMAGENET)}, [build])
        [result] = our_results([artifact], *given, preset="table7", standard=standard)
        return result.departures

    published = "vqkd_encoder_base_decoder_3x768x12_clip"
    assert found(published) == found(f"/weights/{published}-d5036aa7.pth") == ()
    assert found("vqkd_encoder_base_decoder_1x768x12_clip") == (
        f"tokens.network vqkd_encoder_base_decoder_1x768x12_clip instead of {published}",
    )
    own = pictures.fitted()
    assert found(f"/data/fit_vqkd/{own.fingerprint}/vqkd.pth", own)[-1] == (
        "a VQ-KD trained here instead of the published one"
    )


def test_the_networks_of_the_standard_are_those_that_the_presets_load() -> None:
    assert network_definition(outline_clip(preset("kclip-build", "imagenet").clip)) == RN50X64
    options = preset("kclip-build", "vqkd").vqkd
    parts = build_vqkd(VQKDSizes(768, 12, 16, 8192, 32), image_size=options.image_size, device="meta")
    assert network_definition(VQKDTokenizer(parts, precision=options.precision)) == VQKD
    assert network_definition(DalleTokenizer(DalleEncoder(), image_size=112)) == DALLE
