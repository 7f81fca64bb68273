"""The flow `reproduce`: the same stages as `mapet reproduce`, each one a task.

prefect deployment run reproduce/demo --watch
"""

from prefect.client.schemas.objects import State

from flows.parameters import OVERRIDES
from flows.runs import mapet_flow, run_chain
from pipeline.chains.graph import FlowResult
from pipeline.configuration.config import ReproduceConfig


@mapet_flow("reproduce")
def reproduce(config: ReproduceConfig, overrides: list[str] = OVERRIDES) -> State[FlowResult]:
    """Pre-train with every objective of the grid on the same tokens, and report on all of them together."""
    return run_chain("reproduce", ReproduceConfig, config, overrides)
