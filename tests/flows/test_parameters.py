"""What a run makes of its parameters: options over those of its deployment, or one sentence."""

from collections.abc import Mapping
from typing import Any

import pytest

from flows.parameters import REFUSED, resolved
from pipeline.configuration.config import KClipBuildConfig
from pipeline.configuration.overrides import apply_overrides
from pipeline.configuration.presets import demo, imagenet
from pipeline.engine.errors import PipelineError
from tests.flows.conftest import Worker
from tests.flows.prefect_server import FlowRun

servers = pytest.mark.servers

DEPLOYMENT = "kclip-build/demo"

# Runs that end as soon as they have understood what they are to do.
ASKED: dict[str, dict[str, Any]] = {
    "partial": {
        "config": {"images": {"kind": "folder", "path": "/nowhere/at/all"}},
        "overrides": ["codebook.vocabulary=16"],
    },
    "misspelt": {"overrides": ["codebook.vocabluary=16"]},
}


@pytest.fixture(scope="module")
def runs(worker: Worker) -> Mapping[str, FlowRun]:
    started = {name: worker.server.start_with(DEPLOYMENT, **parameters) for name, parameters in ASKED.items()}
    return {name: worker.server.ended(run) for name, run in started.items()}


@servers
def test_a_partial_config_and_overrides_change_what_they_name_alone(
    worker: Worker, runs: Mapping[str, FlowRun]
) -> None:
    assert runs["partial"]["state"]["message"].startswith("images.path=/nowhere/at/all does not exist")
    logs = worker.server.logs_of(runs["partial"], until="options that differ")
    changed = "images.kind=folder, images.path=/nowhere/at/all, codebook.vocabulary=16"
    assert f"options that differ from the deployment's: {changed}" in logs.splitlines()


@servers
def test_parameters_that_cannot_be_fail_the_run_with_one_sentence(worker: Worker, runs: Mapping[str, FlowRun]) -> None:
    state = runs["misspelt"]["state"]
    assert (state["type"], "\n" in state["message"]) == ("FAILED", False)
    sentence = "codebook.vocabluary: codebook has no option 'vocabluary' (did you mean 'vocabulary'?)"
    assert state["message"].startswith(f"{REFUSED}{sentence}")
    logs = worker.server.logs_of(runs["misspelt"], until="Finished in state Failed")
    assert "Traceback" not in logs
    assert "run it again with the same parameters" not in logs


@servers
@pytest.mark.parametrize(
    ("parameters", "unknown"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"config.codebook.vocabulary": 16}, "config.codebook.vocabulary"),
        ({"config": {"nonsense": 1}}, "nonsense"),
        ({"config": {"codebook": {"vocabluary": 16}}}, "vocabluary"),
    ],
)
def test_a_parameter_that_does_not_exist_is_refused_before_there_is_a_run(
    worker: Worker, parameters: dict[str, Any], unknown: str
) -> None:
    answer = worker.server.ask(DEPLOYMENT, parameters)
    assert (answer.status_code, answer.text.count("\n")) == (409, 0)
    assert f"Additional properties are not allowed ('{unknown}' was unexpected)" in answer.text


def test_without_a_deployment_a_partial_config_is_over_the_defaults_of_its_class() -> None:
    assert resolved(KClipBuildConfig, {"codebook": {"vocabulary": 16}}, []) == apply_overrides(
        KClipBuildConfig(), ["codebook.vocabulary=16"]
    )


def test_a_configuration_from_python_is_taken_as_it_is_and_overrides_go_over_it() -> None:
    assert resolved(KClipBuildConfig, imagenet(), None) == imagenet()
    assert resolved(KClipBuildConfig, demo(), ["tokenizer=pixels"]) == apply_overrides(demo(), ["tokenizer=pixels"])


@pytest.mark.parametrize(
    ("config", "overrides", "sentence"),
    [
        ("demo", [], "config='demo': sections with their options were expected"),
        ({"codebook": 3}, [], "codebook is a section; set one of its options, such as codebook.vocabulary="),
        ({"codebook": {"vocabluary": 3}}, [], r"codebook has no option 'vocabluary' \(did you mean 'vocabulary'\?\)"),
        ({}, "codebook.vocabulary=3", "overrides='codebook.vocabulary=3': a list such as"),
        ({}, [3], r"overrides=\[3\]: a list such as"),
        ({}, ["codebook.vocabulary"], "'codebook.vocabulary' is not of the form option=value"),
        ({"fit_vqkd": {"training": {"steps": 100}}}, [], r"fit_vqkd\.training: "),  # which JSON schema cannot say
        (
            {},
            ["settings.device=cpu"],
            r"settings\.device=cpu: settings of the machine are its worker's; start the worker with MAPET_DEVICE=cpu",
        ),
    ],
)
def test_what_is_neither_options_nor_overrides_is_one_sentence(
    config: object, overrides: object, sentence: str
) -> None:
    with pytest.raises(PipelineError, match=f"^{REFUSED}.*{sentence}") as raised:
        resolved(KClipBuildConfig, config, overrides)
    assert "\n" not in str(raised.value)
