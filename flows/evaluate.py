"""The flow `evaluate`: the same stages as `mapet evaluate`, each one a task.

prefect deployment run evaluate/demo --watch
"""

from prefect.client.schemas.objects import State

from flows.parameters import OVERRIDES
from flows.runs import mapet_flow, run_chain
from pipeline.chains.graph import FlowResult
from pipeline.configuration.config import EvaluateConfig


@mapet_flow("evaluate")
def evaluate(config: EvaluateConfig, overrides: list[str] = OVERRIDES) -> State[FlowResult]:
    """Evaluate a pre-training with every protocol asked for; what is not there yet is built first."""
    return run_chain("evaluate", EvaluateConfig, config, overrides)
