"""The flow `pretrain`: the same stages as `mapet pretrain`, each one a task.

prefect deployment run pretrain/demo --watch
"""

from prefect.client.schemas.objects import State

from flows.parameters import OVERRIDES
from flows.runs import mapet_flow, run_chain
from pipeline.chains.graph import FlowResult
from pipeline.configuration.config import PretrainConfig


@mapet_flow("pretrain")
def pretrain(config: PretrainConfig, overrides: list[str] = OVERRIDES) -> State[FlowResult]:
    """Pre-train a backbone on k-CLIP tokens, or find it; tokens that are not there are built first."""
    return run_chain("pretrain", PretrainConfig, config, overrides)
