"""How long a graph takes on several jobs, from what its stages cost."""

from collections.abc import Mapping, Sequence

from pipeline.chains.costs import readable_hours
from pipeline.chains.graph import Graph, Node
from pipeline.chains.plan import PlannedStage
from pipeline.chains.sharing import sharing_of
from pipeline.engine.settings import Settings
from pipeline.engine.stage import Source


def schedule_words(graph: Graph, planned: Sequence[PlannedStage], settings: Settings) -> str:
    """Say how long what is to run takes on as many jobs as a run would have; "" where stages run one after the other,
    or nothing is known of them.

    Raises:
        PipelineError: there is no room for so many jobs.
    """
    costs = {stage.stage: stage.cost for stage in planned if stage.cost is not None}
    hours = {name: cost.device_hours / cost.devices for name, cost in costs.items() if cost.device_hours is not None}
    if not hours or (sharing := sharing_of(graph, settings)).jobs == 1:
        return ""
    unknown = len(costs) - len(hours)
    without = f", without the {unknown} of a kind that has not run here yet" if unknown else ""
    return f"{sharing.words}: about {readable_hours(hours_on_jobs(graph, hours, sharing.jobs))} in all{without}"


def hours_on_jobs(graph: Graph, hours: Mapping[str, float], jobs: int) -> float:
    """Return when the last node ends, as `pipeline/chains/at_once.py` lets them begin: in the order of the graph, each
    as soon as the main images are known, what it takes is there and a job is free. `hours`: by name; others take
    none."""
    ends: dict[Source, float] = {}
    free, waiting = [0.0] * jobs, list(graph.nodes)
    while waiting:
        if graph.index.stage not in ends:
            node, begins = waiting[0], max(ends.values(), default=0.0)
        else:
            to_make = {one.stage for one in waiting}
            ready = [one for one in waiting if to_make.isdisjoint(_taken(one))]
            soonest = max(min(free), ends[graph.index.stage])
            earliest = [max([soonest, *(ends.get(source, 0.0) for source in _taken(one))]) for one in ready]
            begins = min(earliest)
            node = ready[earliest.index(begins)]  # of equals, the graph's first
        free.remove(min(free))
        ends[node.stage] = begins + hours.get(node.name, 0.0)
        free.append(ends[node.stage])
        waiting.remove(node)
    return max(ends.values(), default=0.0)


def _taken(node: Node) -> tuple[Source, ...]:
    return node.stage.upstream
