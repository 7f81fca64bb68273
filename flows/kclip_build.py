"""The flow `kclip-build`: the same stages as `mapet kclip-build`, each one a task.

prefect deployment run kclip-build/demo --watch
"""

from prefect.client.schemas.objects import State

from flows.parameters import OVERRIDES
from flows.runs import mapet_flow, run_chain
from pipeline.chains.graph import FlowResult
from pipeline.configuration.config import KClipBuildConfig


@mapet_flow("kclip-build")
def kclip_build(config: KClipBuildConfig, overrides: list[str] = OVERRIDES) -> State[FlowResult]:
    """Build the k-CLIP tokens of a data set, or find them: images, features, codebook, tokens, report."""
    return run_chain("kclip-build", KClipBuildConfig, config, overrides)
