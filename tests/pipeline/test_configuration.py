import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial, reduce
from pathlib import Path

import pytest
from pydantic import BaseModel

from flows.services.settings import ServiceSettings
from models.options import Options
from pipeline.chains.unused_options import notes_on_unused
from pipeline.commands.run import mlflow_hint
from pipeline.commands.words import Words, read_words
from pipeline.configuration.config import PretrainConfig, ReproduceConfig
from pipeline.configuration.overrides import apply_overrides, merge
from pipeline.configuration.presets import PRESETS, preset
from pipeline.engine.errors import PipelineError
from pipeline.engine.fingerprint import defining_options
from pipeline.engine.settings import Settings, load_settings, warn_of_unknown
from tests.builds import make_photos
from tests.commands import mapet

ROOT = Path(__file__).parents[2]
PACKAGES = ("models", "storage", "pipeline", "flows")


def texts(place: str) -> list[Path]:
    """Return what people read, below a folder of this project."""
    below = [ROOT / place] if (ROOT / place).is_file() else sorted((ROOT / place).rglob("*"))
    return [path for path in below if path.suffix in (".md", ".py", ".html")]


def sections(config: type[BaseModel] = ReproduceConfig, path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield all of them, those inside others too."""
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


def test_a_part_of_a_configuration_changes_what_it_names_and_a_whole_one_everything() -> None:
    imagenet, demo = preset("kclip-build", "imagenet"), preset("kclip-build", "demo")
    changed = merge(imagenet, {"codebook": {"vocabulary": 16}, "fit_vqkd": {"training": {"batch_size": 8}}})
    assert changed == apply_overrides(imagenet, ["codebook.vocabulary=16", "fit_vqkd.training.batch_size=8"])
    assert merge(imagenet, demo.model_dump(mode="json")) == demo
    assert merge(imagenet, {}) == imagenet


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("codebook.vocabulary", "is not of the form option=value"),
        ("codebook.vocabluary=3", "has no option 'vocabluary' (did you mean 'vocabulary'?)"),
        ("codebok.vocabulary=3", "has no option 'codebok' (did you mean 'codebook'?)"),
        ("images.images_per_unit=3", "has no option 'images_per_unit' (did you mean 'images_per_shard'?)"),
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
        (["show", "demo", "settings.workers=many"], "workers"),
        (["verify", "nowhere"], "nowhere does not exist"),
        (["verify", "."], "no artifact here"),
        (["tokens", "nowhere"], "no artifact"),
        (["pretrian", "demo"], "there is no command 'pretrian' (did you mean 'pretrain'?)"),
        (["export", "artifact"], "the following arguments are required: --to"),
        (["kclip-build", "folder", "--images.path=x"], "options have no dashes: images.path=x"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    said = mapet(tmp_path, *arguments, shortage=partial(os.chdir, tmp_path))
    assert said.code == 2, said.err
    assert message in said.err
    assert "Traceback" not in said.err
    assert len(said.err.strip().splitlines()) == 1


@pytest.mark.parametrize("command", [*PRESETS, "plan", "show", "verify"])
def test_options_without_a_preset_are_refused_with_the_presets_there_are(command: str, tmp_path: Path) -> None:
    flow = command if command in PRESETS else "kclip-build"
    for words in (("images.path=my photos",), ("settings.workers=1",)):
        said = mapet(tmp_path, command, *words, shortage=partial(os.chdir, tmp_path))
        assert said.code == 2, said.err
        assert said.last.startswith(f"mapet: error: '{words[0]}' changes an option of a preset, and none stands before")
        assert f"`mapet {command} PRESET {shlex.join(words)}`" in said.last
        assert said.last.endswith(f"presets of {flow}: {', '.join(PRESETS[flow])}")
        assert said.err.count("\n") == 1
        assert said.out == ""


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("plan", ["images.path=x", "folder"], "none stands before it: `mapet plan folder images.path=x`"),
        ("plan", ["pretrain", "images.path=x"], "`mapet plan pretrain PRESET images.path=x`"),
        ("plan", ["vit_base"], "it is one of pretrain and evaluate: `mapet plan pretrain vit_base`"),
        ("plan", ["reprodce", "table1"], "no preset 'reprodce' (did you mean 'reproduce'?)"),
        ("show", ["reproduce", "tabel1"], "reproduce has no preset 'tabel1' (did you mean 'table1'?)"),
        (
            "pretrain",
            ["imagenet"],
            "pretrain has no preset 'imagenet'; it is one of kclip-build; presets: demo,",
        ),
    ],
)
def test_words_that_mean_something_else_are_told_apart(command: str, words: list[str], message: str) -> None:
    with pytest.raises(PipelineError) as error:
        read_words(command, words, flow=command if command in PRESETS else "")
    assert message in str(error.value)


def test_no_words_at_all_are_the_demo_and_it_is_said(tmp_path: Path) -> None:
    said = mapet(tmp_path / "said", "plan", shortage=partial(os.chdir, tmp_path))
    assert said.code == 0, said.err
    assert said.err.startswith("no preset is named, so this is `mapet kclip-build demo`; presets: demo, imagenet, ")
    assert "make_demo_images" in said.out
    assert read_words("show", ["reproduce"]) == Words("reproduce", "demo", is_default=True)


def test_of_two_values_of_an_option_the_last_one_counts_and_that_is_said(tmp_path: Path) -> None:
    said = mapet(tmp_path, "show", "demo", "codebook.vocabulary=3", "codebook.vocabulary=4", "codebook.seed=1")
    assert said.code == 0, said.err
    assert "\ncodebook.vocabulary=4\n" in said.out
    assert said.err == "codebook.vocabulary is given twice, as 3 and as 4; the last one counts\n"


def test_a_presets_name_is_the_preset_and_a_folder_of_that_name_has_its_place(tmp_path: Path) -> None:
    photos, said = make_photos(tmp_path / "imagenet", train=2, val=1), tmp_path / "said"
    here = partial(os.chdir, tmp_path)
    settings = ("settings.workers=0", f"settings.data_root={tmp_path / 'data'}")
    preset_meant = mapet(said, "verify", "imagenet", f"images.path={photos}", *settings, shortage=here)
    assert preset_meant.code == 0, preset_meant.err
    assert preset_meant.out.startswith(f"ok       {photos} (6 images)\n")
    folder_meant = mapet(said, "verify", "./imagenet", shortage=here)
    assert folder_meant.last == (
        "mapet: error: imagenet: no artifact here; give the folder of one, or a data root that holds some"
    )
    mistyped = mapet(said, "verify", "imagnet", shortage=here)
    assert "imagnet does not exist, and no preset has that name (did you mean 'imagenet'?)" in mistyped.last
    assert "no preset 'imagnet' (did you mean 'imagenet'?)" in mapet(said, "verify", "imagnet", "images.path=x").last
    assert (folder_meant.code, mistyped.code) == (2, 2)


def test_options_that_change_nothing_are_named_once_and_others_are_not(tmp_path: Path) -> None:
    words = ("demo", "images.path=/photos", "vqkd.image_size=64", "codebook.vocabulary=77", "demo_clip.epochs=2")
    said = mapet(tmp_path, "show", "pretrain", *words, "objectives.pim.cutting_point=3", "training.epochs=7")
    assert said.code == 0, said.err
    assert said.err.splitlines() == [
        "images.path is not used: with images.kind=demo the images are drawn; images.kind=folder reads others",
        "vqkd.image_size is not used: the tokenizer is kclip",
        "objectives.pim.cutting_point is not used: the objective is mapet",
    ]


@pytest.mark.parametrize(
    ("flow", "name", "option", "unused"),
    [
        ("kclip-build", "vqkd", "fit_vqkd.flip=0.1", True),
        ("kclip-build", "fit_vqkd", "fit_vqkd.flip=0.1", False),
        ("kclip-build", "fit_vqkd", "vqkd.image_size=64", True),
        ("kclip-build", "vqkd", "codebook.vocabulary=77", True),
        ("kclip-build", "folder", "demo_images.limit=80", True),
        ("kclip-build", "demo", "demo_images.limit=80", False),
        ("evaluate", "demo", "linear_probe.crop_pct=0.5", True),
        ("evaluate", "demo", "fine_tune.crop_pct=0.5", False),
        ("evaluate", "demo", "demo_segmentation.train_images=70", False),
        ("reproduce", "demo", "vqkd.precision=bf16", False),  # its tokens are judged
        ("reproduce", "demo", "dalle.image_size=64", True),
        ("reproduce", "demo", "objectives.pim.cutting_point=6", False),
        ("reproduce", "demo", "objectives.cae.masked=6", True),
        ("reproduce", "demo", "tokenizer=pixels", True),  # grid.tokenizers says whose
        ("reproduce", "demo", "pretrain.seed=7", True),
        ("reproduce", "demo", "fine_tune.seed=7", True),
        ("reproduce", "demo", "fine_tune.training.epochs=7", False),
        ("reproduce", "table1", "fine_tune.training.epochs=77", True),  # every backbone has the paper's
        ("reproduce", "table1", "training.epochs=77", False),
        ("reproduce", "table7", "training.epochs=77", True),
        ("reproduce", "table7", "tokens_as_input.training.epochs=77", False),
        ("reproduce", "table6", "objectives.mapet.cutting_point=61", True),
    ],
)
def test_what_is_used_depends_on_tokenizer_objective_kind_and_grid(
    flow: str, name: str, option: str, unused: bool
) -> None:
    config = apply_overrides(preset(flow, name), [option])
    assert bool(list(notes_on_unused(config, [option.partition("=")[0]]))) == unused


PATHS = [
    "images.path",
    "images.labels_csv",
    "clip.pretrained",
    "fit_vqkd.teacher.pretrained",
    "vqkd.checkpoint",
    "dalle.checkpoint",
    "pretrain.tokens",
    "segmentation.path",
    "transfer.stanford_cars",
    "transfer.food101",
    "transfer.fgvc_aircraft",
    "transfer.folder",
]


def test_the_home_directory_stands_for_a_tilde_in_every_option_that_is_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = apply_overrides(preset("reproduce", "demo"), [f"{name}=~/there" for name in PATHS])
    for name in PATHS:
        assert reduce(getattr, name.split("."), config) == "/home/somebody/there", name
    local = apply_overrides(config, ["clip.model=local-dir:~/clip", "fit_vqkd.teacher.model=local-dir:~/clip"])
    assert {local.clip.model, local.fit_vqkd.teacher.model} == {"local-dir:/home/somebody/clip"}
    assert apply_overrides(config, ["clip.model=RN50"]).clip.model == "RN50"
    assert Settings(data_root="~/data").layout.root == Path("/home/somebody/data")
    assert Settings(data_root="s3://bucket/there").layout.root.is_relative_to("/home/somebody/.cache/mapet")
    settings = {name for section, model in sections() for name in settings_of(section, model)}
    others = {"decoding.max_bad_images", "decoding.on_bad_image", "images.identity", "segmentation.identity"}
    assert settings <= {*PATHS, *others}, "a new option that is a path?"


def settings_of(section: str, model: type[BaseModel]) -> Iterator[str]:
    """Yield options that define no result: paths, and what a bad image does."""
    for name, field in model.model_fields.items():
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("defines_result") is False:
            yield f"{section}.{name}"


def start_in(folder: Path, variables: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ |= variables


def test_the_settings_of_the_services_are_known_names(caplog: pytest.LogCaptureFixture) -> None:
    names = [f"MAPET_{name.upper()}" for name in ServiceSettings.model_fields]
    warn_of_unknown((*names, "MAPET_PORT"))
    assert [message.partition(" ")[0] for message in caplog.messages] == ["MAPET_PORT"]


def with_ascii_terminal() -> None:
    """Print as PYTHONIOENCODING=ascii has it."""
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(encoding="ascii", errors="strict")


def test_names_that_the_terminal_has_no_letters_for_are_printed_in_others(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "Bären und Öfen", train=2, val=1)
    words = ("verify", "folder", f"images.path={photos}", "settings.workers=0")
    said = mapet(tmp_path / "said", *words, shortage=with_ascii_terminal)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"ok       {tmp_path}/B\\xe4ren und \\xd6fen (6 images)\n")


def test_commands_that_are_printed_to_be_copied_are_quoted() -> None:
    settings = Settings(data_root="/home/my data")
    hint = mlflow_hint(settings)
    assert shlex.split(hint)[-1] == "sqlite:////home/my data/mlflow/mlflow.db"
    assert len(shlex.split(hint)) == 4
    plain = mlflow_hint(Settings(data_root="/data"))
    assert plain == "mlflow ui --backend-store-uri sqlite:////data/mlflow/mlflow.db"


SNIPPETS = [
    path for place in ("README.md", "docs", "docker", "benchmarks/README.md", *PACKAGES) for path in texts(place)
]


def test_every_snippet_opens_stores_for_reading() -> None:
    opened = [line for path in SNIPPETS for line in path.read_text().splitlines() if "zarr.open" in line]
    assert len(opened) >= 3
    for line in opened:
        assert re.search(r"""mode=["']r["']""", line), line


def test_a_setting_that_does_not_exist_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MAPET_WORKER=3\nOTHER=1\n", encoding="utf-8-sig")

    variables = {"MAPET_DATAROOT": "/big", "MAPET_RUNS": "2", "MAPET_SERVICE": "mark", "mapet_device": "cpu"}
    said = mapet(tmp_path / "said", "show", "demo", shortage=partial(start_in, tmp_path, variables))
    assert said.code == 0, said.err
    assert said.err.splitlines() == [
        "MAPET_DATAROOT is no setting (did you mean 'MAPET_DATA_ROOT'?) and is ignored",
        "MAPET_WORKER is no setting (did you mean 'MAPET_WORKERS'?) and is ignored",
    ]


def test_the_mark_that_windows_puts_before_a_text_is_no_part_of_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("MAPET_WORKERS=3\n", encoding="utf-8-sig")
    assert load_settings().workers == 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_an_env_file_that_is_not_utf_8_is_one_sentence_that_names_it(encoding: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("MAPET_DATA_ROOT=/Büro\n".encode(encoding))
    said = mapet(tmp_path / "said", "show", "demo", shortage=partial(os.chdir, tmp_path))
    assert said.code == 2, said.err
    assert said.err.startswith(f"mapet: error: {tmp_path}/.env is not UTF-8 text ("), said.err
    assert "save it as UTF-8" in said.err
    assert said.err.count("\n") == 1


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys; from pipeline.commands.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'numpy', 'pydantic', 'mlflow', 'prefect', 'pyarrow'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def heavy_after(code: str, folder: Path, *, status: int = 0) -> list[str]:
    """Return which of the libraries that take long to import a new process has imported after this code."""
    told = folder / "imported"
    libraries = "torch timm torchvision open_clip faiss mlflow scipy sklearn pandas matplotlib prefect"
    code = f"import atexit, sys\nfrom pathlib import Path\nheavy = set({libraries!r}.split())\n{TELL}\n{code}"
    done = subprocess.run([sys.executable, "-c", code, str(told)], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return told.read_text().split()


TELL = "atexit.register(lambda: Path(sys.argv[1]).write_text(' '.join(sorted(heavy & sys.modules.keys()))))"


def test_what_a_process_has_imported_is_seen(tmp_path: Path) -> None:
    assert "torch" in heavy_after("import torch", tmp_path)


def test_the_configuration_and_every_options_class_import_no_torch(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    files = [path for name in ("models", "pipeline") for path in (root / name).rglob("*options.py")]
    assert len(files) > 15
    modules = [".".join(path.relative_to(root).with_suffix("").parts) for path in sorted(files)]
    assert (
        heavy_after("\n".join(f"import {name}" for name in ["pipeline.configuration.presets", *modules]), tmp_path)
        == []
    )


@pytest.mark.parametrize(
    ("words", "status"), [("show pretrain vit_base", 0), ("pretrain vit_base pretrain.objectiv=mim", 2)]
)
def test_an_answer_that_computes_nothing_imports_no_torch(words: str, status: int, tmp_path: Path) -> None:
    code = f"from pipeline.commands.main import main\nmain({words.split()!r})"
    assert heavy_after(code, tmp_path, status=status) == []


def test_the_graphs_and_the_stages_import_no_torch(tmp_path: Path) -> None:
    code = "import pipeline.chains.plan\nfrom pipeline.chains.by_name import CHAINS\n"
    code += "from pipeline.configuration.presets import preset\nCHAINS['reproduce'].graph(preset('reproduce', 'demo'))"
    assert heavy_after(code, tmp_path) == []


def test_show_prints_every_option_with_its_value(tmp_path: Path) -> None:
    said = mapet(tmp_path, "show", "reproduce", "demo", "codebook.vocabulary=77")
    assert said.code == 0
    assert "codebook.vocabulary=77" in said.out
    assert 'clip.model="demo"' in said.out
    for section, model in sections():
        for option in model.model_fields:
            if f"{section}.{option}" not in dict(sections()):
                assert f"\n{section}.{option}=" in said.out
