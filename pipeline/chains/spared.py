"""What keeping squares spares, and what it takes: said by a plan."""

from collections.abc import Sequence

from pipeline.chains.by_name import CHAINS
from pipeline.chains.costs import Cost, cost_of, readable_hours
from pipeline.chains.plan import PlannedStage
from pipeline.configuration.config import KClipBuildConfig
from pipeline.engine.disk_space import readable_bytes
from pipeline.engine.settings import Settings
from pipeline.stages.pretrain import Pretrain
from pipeline.stages.store_squares import StoreSquares
from storage.artifact import list_artifacts
from storage.files import free_bytes


def spared_words(flow: str, config: KClipBuildConfig, planned: Sequence[PlannedStage], settings: Settings) -> str:
    """Say what `settings.stored_squares` spares the pre-trainings that are to run, of decoding; "" for nothing."""
    nodes = CHAINS[flow].graph(config, settings).nodes
    by_name = {stage.stage: stage for stage in planned}
    trained = [by_name[node.name].cost for node in nodes if isinstance(node.stage, Pretrain) and node.stage.squares]
    images = sum(cost.images or 0 for cost in trained if cost)
    kept = next(((node.name, node.stage) for node in nodes if isinstance(node.stage, StoreSquares)), None)
    if kept is None or not images:
        return ""
    name, stage = kept
    words = [f"settings.stored_squares spares pre-training {images:,} decodings{_time(stage, images, settings)}"]
    if cost := by_name[name].cost:
        room = free_bytes(settings.layout.root)
        words += [f"it takes {readable_bytes(cost.disk)} of disk, {readable_bytes(room)} are free"]
    return "; ".join(words)


def _time(stage: StoreSquares, images: int, settings: Settings) -> str:
    """Return what so many decodings take, by the newest squares that were decoded here."""
    from pipeline.chains.workloads import Workload, squares_like

    made = list_artifacts(settings.layout, stage.NAME)
    cost: Cost = cost_of(Workload({"encoding": images}, squares_like(stage)), made)
    if cost.device_hours is None:
        return " (how long one takes has not been measured here yet)"
    return f", about {readable_hours(cost.device_hours)} of {cost.device}"
