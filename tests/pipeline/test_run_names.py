"""What runs are called in MLflow."""

import pytest

from pipeline.commands.run_names import name_of_run
from pipeline.configuration.overrides import apply_overrides
from pipeline.configuration.presets import preset


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("pretrain.seed=7",),
        ("tokenizer=pixels", "training.epochs=3"),
        ("training.epochs=null", "training.steps=100"),
        ("images.path=/photographs/of the sea", "objectives.mim.masked=5"),
    ],
)
def test_a_run_is_named_after_what_its_command_gives(given: tuple[str, ...]) -> None:
    config = apply_overrides(preset("pretrain", "demo"), given)
    words = name_of_run("pretrain", "demo", config)
    assert words.startswith("pretrain demo")
    assert all(f" {word}" in words for word in given)
    assert words.count("=") == len(given)


def test_a_preset_that_is_none_is_compared_with_the_defaults() -> None:
    config = apply_overrides(type(preset("kclip-build", "demo"))(), ["codebook.vocabulary=77"])
    assert name_of_run("kclip-build", "of-a-deployment", config) == (
        "kclip-build of-a-deployment codebook.vocabulary=77"
    )


def test_a_long_name_is_cut_to_what_mlflow_takes() -> None:
    config = apply_overrides(preset("pretrain", "demo"), [f"images.path=/{'deep/' * 100}", "pretrain.seed=7"])
    name = name_of_run("pretrain", "demo", config)
    assert name.endswith(" ...")
    assert len(name) <= 250
