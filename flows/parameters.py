"""What a run is to do: the parameters that it was given, over those of its deployment; or one sentence why not.

Flows take their parameters as they come (`validate_parameters=False`). Prefect's own validation would fill a `config`
that names three options with the defaults of the class, whatever the deployment says, and answer a mistake with a
traceback. Their types still make the form, and what JSON schema can say of them is checked by the server.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from pydantic import Field

from models.options import Options
from pipeline.commands.words import say_repeated
from pipeline.configuration.overrides import apply_overrides, differences, merge
from pipeline.engine.errors import USER_ERRORS, PipelineError

logger = logging.getLogger("mapet.stages")

Config = TypeVar("Config", bound=Options)

REFUSED = "nothing was run: "  # how the message of a run begins whose parameters cannot be

OVERRIDES: Any = Field(
    default=[],
    description="Changes to `config`, applied in order and written as on the command line: `pretrain.seed=7`, "
    '`grid.objectives=["mim","pim"]`. Settings of the machine (`settings.*`) are the worker\'s.',
)


def resolved(model: type[Config], config: object, overrides: object) -> Config:
    """Resolve the configuration of this flow run, and log what differs in it from the deployment's.

    Raises:
        PipelineError: an option that does not exist or a value that it cannot have; an override of the machine's.
    """
    try:
        own = _of_deployment(model)
        wanted = apply_overrides(_merged(model, own, config), _of_config(overrides))
    except USER_ERRORS as error:
        raise PipelineError(f"{REFUSED}{error}") from None
    if own is not None and (changed := differences(wanted, own)):
        logger.info("options that differ from the deployment's: %s", ", ".join(changed))
    return wanted


def _of_deployment(model: type[Config]) -> Config | None:
    """Read what the deployment says now, its preset or what became of it in Prefect; None without a deployment."""
    context = FlowRunContext.get()
    # Not `runtime.deployment`: inside another flow that is the deployment of the other one.
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return None
    with get_client(sync_client=True) as client:
        config = client.read_deployment(context.flow_run.deployment_id).parameters.get("config", {})
    return _merged(model, None, config)


def _merged(model: type[Config], own: Config | None, config: object) -> Config:
    if isinstance(config, model):
        return config
    if isinstance(config, Mapping):
        return merge(own or model(), config)
    raise PipelineError(
        f"config={config!r}: sections with their options were expected, such as "
        '{"codebook": {"vocabulary": 1024}}; what is not named stays as the deployment says'
    )


def _of_config(overrides: object) -> Sequence[str]:
    given = overrides or []
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise PipelineError(f'overrides={overrides!r}: a list such as ["codebook.vocabulary=1024"] was expected')
    for one in given:
        name, _, value = one.partition("=")
        if name.startswith("settings."):
            variable = f"MAPET_{name.removeprefix('settings.').upper()}={value}"
            raise PipelineError(f"{one}: settings of the machine are its worker's; start the worker with {variable}")
    say_repeated(given)
    return given
