"""How a chain is run: what cannot be is refused first."""

from pipeline.chains.graph import FlowResult, Graph, MakeNode, make_directly, run_graph
from pipeline.engine.workspace import Workspace


def run(graph: Graph, workspace: Workspace, make_node: MakeNode = make_directly, *, cell: str = "") -> FlowResult:
    """Make what is missing of a graph, or of one cell of its grid. `make_node` makes one node.

    Raises:
        PipelineError: as `run_graph` and `pipeline.chains.checks.require_possible`.
    """
    from pipeline.chains.checks import require_possible_run  # torch, which whoever asks for the graph need not wait for

    return run_graph(
        graph.of_cell(cell) if cell else graph,
        workspace,
        make_node,
        check=lambda made: require_possible_run(graph.nodes, made[graph.index.stage], workspace.settings),
    )
