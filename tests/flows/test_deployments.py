"""prefect.yaml, and the form that Prefect makes of the flow's parameters."""

from typing import Any

import yaml  # type: ignore[import-untyped]
from prefect.utilities.callables import parameter_schema

from flows import deployments
from flows.kclip_build import kclip_build
from pipeline.config import KClipBuildConfig
from pipeline.presets import PRESETS
from tests.flows.prefect_server import REPOSITORY


def test_prefect_yaml_is_what_the_presets_say() -> None:
    text = (REPOSITORY / "prefect.yaml").read_text(encoding="utf-8")

    assert text == deployments.render(), "run `python -m flows.deployments > prefect.yaml`"


def test_every_deployment_spells_out_the_whole_configuration_of_its_preset() -> None:
    written = yaml.safe_load(deployments.render())["deployments"]

    assert [deployment["name"] for deployment in written] == list(PRESETS)
    for deployment in written:
        config = deployment["parameters"]["config"]
        assert KClipBuildConfig.model_validate(config) == PRESETS[deployment["name"]]()
        assert config.keys() == KClipBuildConfig.model_fields.keys()


def test_prefect_yaml_names_no_path_of_a_machine() -> None:
    def texts(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for key, item in value.items() if key != "description" for text in texts(item)]
        return [text for item in value for text in texts(item)] if isinstance(value, list) else [str(value)]

    assert not [text for text in texts(deployments.deployments()) if text.startswith(("/", "~"))]


def test_the_form_shows_help_for_every_option() -> None:
    sections = _definitions()

    silent = [
        f"{section}.{name}"
        for section, definition in sections.items()
        for name, option in definition["properties"].items()
        if not option.get("description")
    ]
    assert len(sections) == 1 + len(KClipBuildConfig.model_fields)
    assert not silent


def test_the_form_knows_bounds_and_choices() -> None:
    sections = _definitions()

    fraction = sections["FeatureOptions"]["properties"]["sample_fraction"]
    assert (fraction["exclusiveMinimum"], fraction["maximum"]) == (0, 1)
    assert sections["ImageSourceOptions"]["properties"]["kind"]["enum"] == ["demo", "folder", "parquet", "webdataset"]


def _definitions() -> dict[str, dict[str, Any]]:
    return parameter_schema(kclip_build.fn).definitions
