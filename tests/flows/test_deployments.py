"""The deployments of the presets as Prefect reads them, and the form that it makes of a flow's parameters."""

from importlib import import_module
from typing import Any

import yaml  # type: ignore[import-untyped]
from prefect.cli.deploy._models import DeploymentConfig, PrefectYamlModel
from prefect.utilities.callables import parameter_schema

from flows import deployments
from flows.reproduce import reproduce
from pipeline.configuration.config import ReproduceConfig
from pipeline.configuration.presets import PRESETS
from pipeline.data.sources.transfer import TRANSFER_KINDS


def test_prefects_own_models_read_the_whole_file_that_is_rendered() -> None:
    """They ignore a word that they do not know, so that nothing is said of one that is misspelt."""
    written = yaml.safe_load(deployments.render())
    read = PrefectYamlModel.model_validate(written)

    assert written.keys() <= PrefectYamlModel.model_fields.keys()
    assert len(read.deployments) == sum(len(named) for named in PRESETS.values())
    for before, after in zip(written["deployments"], read.deployments, strict=True):
        assert before.keys() <= DeploymentConfig.model_fields.keys()
        assert after.model_dump(include=before.keys() - {"schedules"}, exclude_unset=True) == {
            name: value for name, value in before.items() if name != "schedules"
        }
    [nightly] = [schedule for deployment in read.deployments for schedule in deployment.schedules or []]
    assert nightly.model_dump(exclude_none=True).items() >= {"slug": "nightly", "cron": "0 3 * * *"}.items()


def test_every_deployment_spells_out_the_whole_configuration_of_its_preset() -> None:
    written = yaml.safe_load(deployments.render())["deployments"]

    presets = [(flow, name, preset) for flow, named in PRESETS.items() for name, preset in named.items()]
    for deployment, (flow, name, preset) in zip(written, presets, strict=True):
        config, wanted = deployment["parameters"]["config"], preset()
        assert deployment["parameters"]["overrides"] == []
        assert (deployment["name"], deployment["tags"]) == (name, [flow])
        assert type(wanted).model_validate(config) == wanted
        assert config.keys() == type(wanted).model_fields.keys()


def test_the_entrypoint_of_every_deployment_is_its_flow() -> None:
    for deployment in yaml.safe_load(deployments.render())["deployments"]:
        module, _, name = deployment["entrypoint"].rpartition(".")
        assert getattr(import_module(module), name).name == deployment["tags"][0]


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
    assert len(sections) > len(ReproduceConfig.model_fields)
    assert not silent


def test_the_form_takes_overrides_and_says_what_they_are() -> None:
    overrides = parameter_schema(reproduce.fn).properties["overrides"]

    assert (overrides["type"], overrides["items"], overrides["default"]) == ("array", {"type": "string"}, [])
    assert "as on the command line: `pretrain.seed=7`" in overrides["description"]


def test_the_form_knows_bounds_and_choices() -> None:
    sections = _definitions()

    fraction = sections["FeatureOptions"]["properties"]["sample_fraction"]
    assert (fraction["exclusiveMinimum"], fraction["maximum"]) == (0, 1)
    objective = sections["PretrainOptions"]["properties"]["objective"]
    assert objective["enum"] == ["mim", "pim", "mapet", "beit", "cae"]
    assert sections["ImageSourceOptions"]["properties"]["kind"]["enum"] == [
        "demo",
        "folder",
        "parquet",
        "webdataset",
        *TRANSFER_KINDS,
        "fashion_mnist",
    ]


def _definitions() -> dict[str, dict[str, Any]]:
    return parameter_schema(reproduce.fn).definitions


def test_the_demo_is_reproduced_every_night_and_nothing_else_by_itself() -> None:
    scheduled = {
        (one["tags"][0], one["name"]): one["schedules"]
        for one in deployments.deployments()["deployments"]
        if "schedules" in one
    }
    assert scheduled == {("reproduce", "demo"): [{"slug": "nightly", "cron": "0 3 * * *", "timezone": "UTC"}]}
