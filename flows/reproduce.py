"""The flow `reproduce`: the same stages as `mapet reproduce`, each one a task.

prefect deployment run reproduce/demo --watch
prefect deployment run reproduce/demo -p cells_as_runs=true --watch    # on as many machines as have workers
prefect deployment run reproduce/demo -p cell=mapet --watch            # only one
"""

from prefect.client.schemas.objects import State

from flows.cells import CELL, CELLS_AS_RUNS
from flows.parameters import OVERRIDES
from flows.runs import mapet_flow, run_chain
from pipeline.chains.graph import FlowResult
from pipeline.configuration.config import ReproduceConfig


@mapet_flow("reproduce")
def reproduce(
    config: ReproduceConfig, overrides: list[str] = OVERRIDES, cell: str = CELL, cells_as_runs: bool = CELLS_AS_RUNS
) -> State[FlowResult]:
    """Pre-train with every objective of the grid on the same tokens, and report on all of them together."""
    return run_chain("reproduce", ReproduceConfig, config, overrides, cell=cell, cells_as_runs=cells_as_runs)
