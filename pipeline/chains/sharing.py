"""How many stages of a graph are made at once, and what each has of the machine."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from models.vit.options import SHAPES
from pipeline.chains.graph import Graph, Node
from pipeline.engine.devices import visible_gpus
from pipeline.engine.errors import PipelineError
from pipeline.engine.settings import Settings
from pipeline.engine.stage import Source
from pipeline.engine.threads import SMALL, threads_of_each
from pipeline.stages.evaluate.evaluate import Evaluate
from pipeline.stages.fit_vqkd import FitVQKD
from pipeline.stages.pretrain import Pretrain

_MOST_ON_A_CPU = 4  # each holds torch, and images on their way


@dataclass(frozen=True)
class Sharing:
    """How many jobs there are at once.

    Attributes:
        gpus: of each job, as `CUDA_VISIBLE_DEVICES` names them; empty on a CPU.
        why: these many, in words; "" where somebody has said so.
    """

    jobs: int = 1
    gpus: tuple[str, ...] = ()
    why: str = ""

    @property
    def words(self) -> str:
        return f"{self.jobs} job{'s' * (self.jobs > 1)} at once (settings.jobs{self.why and f': {self.why}'})"

    @property
    def environments(self) -> list[Mapping[str, str]]:
        """What the process of each job has beside this one's environment."""
        if self.gpus:
            return [{"CUDA_VISIBLE_DEVICES": gpus} for gpus in self.gpus]
        return [{} for _ in range(self.jobs)]

    def has_place_for(self, node: Node) -> bool:
        """Return whether a job makes it: one that uses no GPU takes no GPU's place."""
        return not self.gpus or node.stage.USES_GPU


def sharing_of(graph: Graph, settings: Settings) -> Sharing:
    """Decide how many stages of a graph are made at once.

    Raises:
        PipelineError: there is no such device, or there are fewer GPUs than were asked for.
    """
    if settings.jobs == 1 or _widest(graph) == 1:
        return Sharing()
    gpus = visible_gpus(settings.torch_device())
    if settings.jobs:
        require_place_for_jobs(settings)
        return Sharing(settings.jobs, _shares(gpus, settings))
    if settings.processes * settings.nodes > 1 or settings.dask_address:
        return Sharing()
    if settings.torch_device().startswith("cuda"):
        return Sharing(max(1, len(gpus)), gpus if len(gpus) > 1 else (), "one per GPU")
    jobs = min(threads_of_each(1), _MOST_ON_A_CPU)
    if jobs == 1 or not all(map(_is_small, graph.nodes)):
        return Sharing()
    return Sharing(jobs, why=f"one per CPU core, at most {_MOST_ON_A_CPU}, as what is trained is small")


def require_place_for_jobs(settings: Settings) -> None:
    """Raise PipelineError where so many jobs cannot be on this machine."""
    if settings.jobs < 2:
        return
    asked = f"settings.jobs={settings.jobs}"
    if settings.nodes > 1:
        raise PipelineError(f"{asked}: of settings.nodes={settings.nodes} all do one training at a time; set it to 1")
    device = settings.torch_device()
    if not device.startswith("cuda"):
        return
    found, wanted = len(visible_gpus(device)) or 1, settings.jobs * settings.processes
    if wanted <= found:
        return
    together = f" with settings.processes={settings.processes}" if settings.processes > 1 else ""
    there = f"settings.device={device} names one GPU" if ":" in device else f"there are {found} here"
    fit = max(1, found // settings.processes)
    raise PipelineError(f"{asked}{together} wants {wanted} GPUs, {there}; set settings.jobs to {fit} or less")


def _shares(gpus: tuple[str, ...], settings: Settings) -> tuple[str, ...]:
    each = settings.processes
    return tuple(",".join(gpus[job * each : (job + 1) * each]) for job in range(settings.jobs)) if gpus else ()


def _widest(graph: Graph) -> int:
    """Return how many nodes are at most as far from the beginning of the graph: at least so many can be made at
    once."""
    depth: dict[Source, int] = {}
    for node in graph.nodes:
        before: Iterable[Source] = node.stage.upstream
        depth[node.stage] = 1 + max((depth.get(source, 0) for source in before), default=0)
    return max(Counter(depth.values()).values())


def _is_small(node: Node) -> bool:
    """Return whether what the node trains, if anything, computes in one thread: the other cores would be idle."""
    stage, weights = node.stage, 0
    if isinstance(stage, FitVQKD):
        network = stage.options.network
        weights = _transformer(network.width, network.depth + network.decoder_depth)
    elif isinstance(stage, Pretrain | Evaluate):
        shape = SHAPES[stage.backbone.name]
        weights = _transformer(shape.width, shape.depth)
    return weights < SMALL


def _transformer(width: int, depth: int) -> int:
    """Return the weights of its blocks, whose MLPs are four widths wide."""
    return 12 * depth * width**2
