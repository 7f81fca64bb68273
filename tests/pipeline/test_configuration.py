import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from pydantic import BaseModel

from models.options import Options
from pipeline.config import PretrainConfig, ReproduceConfig
from pipeline.errors import PipelineError
from pipeline.fingerprint import defining_options
from pipeline.overrides import apply_overrides
from pipeline.presets import PRESETS, preset
from pipeline.settings import Settings
from tests.commands import mapet


def sections(config: type[BaseModel] = ReproduceConfig, path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """All of them, those inside others too."""
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield f"{path}{name}", field.annotation
            yield from sections(field.annotation, f"{path}{name}.")


def test_overrides_set_numbers_text_lists_and_null() -> None:
    changed = apply_overrides(
        preset("kclip-build", "imagenet"),
        [
            "codebook.vocabulary=1024",
            "images.path=/data/my images",
            'features.splits=["train","val"]',
            "codebook.max_points_per_centroid=null",
        ],
    )
    assert changed.codebook.vocabulary == 1024
    assert changed.images.path == "/data/my images"
    assert changed.features.splits == ("train", "val")
    assert changed.codebook.max_points_per_centroid is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("codebook.vocabulary", "is not of the form option=value"),
        ("codebook.vocabluary=3", "has no option 'vocabluary' (did you mean 'vocabulary'?)"),
        ("codebok.vocabulary=3", "has no option 'codebok' (did you mean 'codebook'?)"),
        ("codebook=3", "codebook is a section"),
        ("codebook.vocabulary.x=3", "codebook.vocabulary is an option, not a section"),
        ("codebook.vocabulary=1", "codebook.vocabulary: input should be greater than or equal to 2, but 1 was given"),
        ("codebook.vocabulary=65536", "less than or equal to 65535"),
        ("decoding.preset=quick", "decoding.preset: input should be 'exact' or 'fast', but 'quick' was given"),
        ("features.sample_fraction=NaN", "features.sample_fraction"),
    ],
)
def test_every_wrong_override_gets_one_sentence(override: str, message: str) -> None:
    with pytest.raises(PipelineError) as error:
        apply_overrides(preset("kclip-build", "demo"), [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("grid.seeds=[-1]", "grid.seeds.0: input should be greater than or equal to 0, but -1 was given"),
        (
            "grid.seeds=[]",
            "grid.seeds: tuple should have at least 1 item after validation, not 0, but [] was given",
        ),
        ("training.steps=4", "training: epochs 6 and steps 4; give one of them, null for the other"),
        ("segmentation.stride=2000", "segmentation: stride 2000 leaves pixels out between windows of 64"),
    ],
)
def test_a_mistake_is_one_true_sentence_and_no_more(override: str, sentence: str) -> None:
    with pytest.raises(PipelineError) as error:
        apply_overrides(preset("reproduce", "demo"), [override])
    assert str(error.value) == sentence


def test_a_long_value_is_cut_where_it_is_refused() -> None:
    with pytest.raises(PipelineError) as error:
        apply_overrides(preset("kclip-build", "demo"), [f"codebook.vocabulary={list(range(1000))}"])
    assert len(str(error.value)) < 200


def test_an_unknown_preset_names_the_ones_there_are() -> None:
    with pytest.raises(PipelineError, match=r"no preset 'imagnet' \(did you mean 'imagenet'\?\)"):
        preset("kclip-build", "imagnet")


@pytest.mark.parametrize(("flow", "name"), [(flow, name) for flow, presets in PRESETS.items() for name in presets])
def test_presets_are_whole_and_say_how_to_run_them(flow: str, name: str) -> None:
    config = preset(flow, name)
    assert type(config).model_validate(json.loads(config.model_dump_json())) == config
    assert f"mapet {flow} {name}" in (PRESETS[flow][name].__doc__ or "")


@pytest.mark.parametrize(("name", "section"), list(sections()))
def test_every_option_has_a_help_text(name: str, section: type[BaseModel]) -> None:
    assert issubclass(section, Options)
    assert [option for option, field in section.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(("name", "cutting_point"), [("vit_tiny", 50), ("vit_small", 50), ("vit_base", 60)])
def test_presets_of_the_paper_are_table_8(name: str, cutting_point: int) -> None:
    config = PRESETS["pretrain"][name]()
    assert isinstance(config, PretrainConfig)
    training, objectives = config.training, config.objectives.model_dump()
    assert (training.epochs, training.batch_size, training.warmup_epochs) == (300, 2048, 10)
    assert (training.peak_learning_rate, training.lowest_learning_rate) == (1.5e-3, 1e-5)
    assert (training.first_learning_rate, training.weight_decay, training.gradient_clip) == (1e-6, 0.05, 3.0)
    assert (training.betas, training.epsilon) == ((0.9, 0.999), 1e-8)
    assert (config.backbone.drop_path_rate, config.backbone.layer_scale) == (0.1, 0.1)
    assert (config.backbone.image_size, config.backbone.patch_size) == (224, 16)
    assert config.pretrain.colour_jitter == 0.4
    assert [objectives[each]["cutting_point"] for each in ("pim", "mapet")] == [cutting_point] * 2
    assert [objectives[each]["masked"] for each in ("mim", "beit", "cae")] == [75, 75, 98]
    assert (config.clip.model, config.codebook.vocabulary) == ("RN50x64-quickgelu", 8192)


def test_paths_and_policies_do_not_define_a_result() -> None:
    here = apply_overrides(preset("kclip-build", "folder"), ["images.path=/here", "decoding.max_bad_images=1"])
    there = apply_overrides(preset("kclip-build", "folder"), ["images.path=/there", "decoding.on_bad_image=fail"])
    assert defining_options(here.images) == defining_options(there.images)
    assert defining_options(here.decoding) == defining_options(there.decoding)
    assert defining_options(here.decoding) != defining_options(apply_overrides(here, ["decoding.preset=fast"]).decoding)


def test_settings_come_from_the_environment_and_from_dot_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("MAPET_WORKERS=3\nMAPET_DEVICE=cpu\nOTHER=1\n")
    monkeypatch.setenv("MAPET_DEVICE", "cuda:1")
    settings = Settings()
    assert (settings.workers, settings.device) == (3, "cuda:1")
    assert settings.layout.root == tmp_path / "data"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kclip-build", "imagnet"], "did you mean 'imagenet'"),
        (["kclip-build", "folder"], "images.path is empty"),
        (["plan", "folder", "images.path=/nowhere"], "does not exist"),
        (["show", "demo", "codebook.size=3"], "has no option 'size'"),
        (["show", "settings.workers=many"], "workers"),
        (["verify", "nowhere"], "no artifact here"),
        (["tokens", "nowhere"], "no artifact"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    said = mapet(tmp_path, *arguments, shortage=partial(os.chdir, tmp_path))
    assert said.code == 2, said.err
    assert message in said.err
    assert "Traceback" not in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys; from pipeline.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'numpy', 'pydantic', 'mlflow', 'prefect', 'pyarrow'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_show_prints_every_option_with_its_value(tmp_path: Path) -> None:
    said = mapet(tmp_path, "show", "reproduce", "demo", "codebook.vocabulary=77")
    assert said.code == 0
    assert "codebook.vocabulary=77" in said.out
    assert 'clip.model="demo"' in said.out
    for section, model in sections():
        for option in model.model_fields:
            if f"{section}.{option}" not in dict(sections()):
                assert f"\n{section}.{option}=" in said.out
