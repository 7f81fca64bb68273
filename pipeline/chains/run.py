"""How a chain is run: what cannot be is refused first."""

from collections.abc import Callable
from functools import partial

from pipeline.chains.graph import FlowResult, Graph, MakeNode, Node, make_directly, run_graph
from pipeline.engine.stage import Made
from pipeline.engine.workspace import Workspace


def run(graph: Graph, workspace: Workspace, make_node: MakeNode = make_directly) -> FlowResult:
    """Make what is missing of a graph, one node after the other. `make_node` makes one node.

    Raises:
        PipelineError: as `run_graph` and `pipeline.chains.checks.require_possible`.
    """
    return run_graph(graph, workspace.of_job(1), make_node, check=partial(_require_possible, graph, workspace))


def run_in_jobs(graph: Graph, workspace: Workspace, make_node: MakeNode, title: Callable[[Node], str]) -> FlowResult:
    """Make what is missing of a graph, as many nodes at once as `settings.jobs` says.

    Args:
        make_node: makes a node in this process.
        title: what stands before each line that another process says.

    Raises:
        PipelineError: as `run`; or there is no room for so many jobs.
    """
    from pipeline.chains.sharing import sharing_of  # torch, which whoever asks for the graph need not wait for

    sharing = sharing_of(graph, workspace.settings)
    if sharing.jobs == 1:
        return run(graph, workspace, make_node)
    from pipeline.chains.at_once import run_at_once

    check = partial(_require_possible, graph, workspace)
    return run_at_once(graph, workspace.of_job(1), make_node, sharing=sharing, title=title, check=check)


def _require_possible(graph: Graph, workspace: Workspace, made: Made) -> None:
    from pipeline.chains.checks import require_possible_run  # torch, as above

    require_possible_run(graph.nodes, made[graph.index.stage], workspace.settings)
