"""How a chain is run: what cannot be is refused first."""

from collections.abc import Callable
from functools import partial

from pipeline.chains.graph import (
    FlowResult,
    Graph,
    MakeInJob,
    MakeNode,
    Node,
    make_directly,
    make_in_job_directly,
    run_graph,
)
from pipeline.engine.stage import Made
from pipeline.engine.workspace import Workspace


def run(graph: Graph, workspace: Workspace, make_node: MakeNode = make_directly, *, cell: str = "") -> FlowResult:
    """Make what is missing of a graph, or of one cell of its grid, one node after the other. `make_node` makes one
    node.

    Raises:
        PipelineError: as `run_graph` and `pipeline.chains.checks.require_possible`.
    """
    check = partial(_require_possible, graph, workspace)
    return run_graph(graph.of_cell(cell) if cell else graph, workspace.of_job(1), make_node, check=check)


def run_in_jobs(
    graph: Graph,
    workspace: Workspace,
    make_node: MakeNode,
    title: Callable[[Node], str],
    *,
    make_in_job: MakeInJob = make_in_job_directly,
    cell: str = "",
) -> FlowResult:
    """Make what is missing of a graph, or of one cell of its grid, as many nodes at once as `settings.jobs` says.

    Args:
        make_node: makes a node in this process.
        make_in_job: has a job make one.
        title: what stands before each line that another process says.

    Raises:
        PipelineError: as `run`; or there is no room for so many jobs.
    """
    from pipeline.chains.sharing import sharing_of  # torch, which whoever asks for the graph need not wait for

    wanted = graph.of_cell(cell) if cell else graph
    sharing = sharing_of(wanted, workspace.settings)
    if sharing.jobs == 1:
        return run(graph, workspace, make_node, cell=cell)
    from pipeline.chains.at_once import run_at_once

    return run_at_once(
        wanted,
        workspace.of_job(1),
        make_node,
        make_in_job=make_in_job,
        sharing=sharing,
        title=title,
        check=partial(_require_possible, graph, workspace),
    )


def _require_possible(graph: Graph, workspace: Workspace, made: Made) -> None:
    from pipeline.chains.checks import require_possible_run  # torch, as above

    require_possible_run(graph.nodes, made[graph.index.stage], workspace.settings)
