"""What stages will cost, from what the parts of others of their kind took here (`pipeline/engine/parts.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.engine.disk_space import readable_bytes
from pipeline.engine.parts import seconds_of
from pipeline.engine.stage_record import BuildNotes, RecordUnreadable
from storage.artifact import Artifact

if TYPE_CHECKING:
    from pipeline.chains.workloads import Workload

HERE = "this machine"


@dataclass(frozen=True)
class Cost:
    """Of one call of a stage.

    Attributes:
        images: that it takes in all, each as often as it is taken; None where it works on no images.
        device_hours: hours times devices; None when nothing like it has run here.
        device: whose hours these are.
        devices: how many of them worked together.
        disk: bytes that it leaves, where these are many.
        trains: whether it is a training.
    """

    images: int | None = None
    device_hours: float | None = None
    device: str = HERE
    devices: int = 1
    disk: int = 0
    trains: bool = False

    @property
    def words(self) -> str:
        words = [f"{self.images:,} images"] if self.images is not None else []
        words += [f"{readable_bytes(self.disk)} of disk"] if self.disk else []
        if self.device_hours is None:
            return "; ".join([*([", ".join(words)] if words else []), "nothing like it has run here yet"])
        who = self.device if self.device == HERE else f"{self.devices} x {self.device}"
        return ", ".join([*words, f"{readable_hours(self.device_hours)} of {who}"])


def cost_of(workload: "Workload", made: Sequence[Artifact]) -> Cost:
    """Estimate the cost of a stage. `made`: artifacts of the same stage, those to be believed first."""
    known: dict[str, Any] = {"images": workload.images, "disk": workload.disk, "trains": workload.trains}
    for artifact in made:
        try:
            notes, is_like = BuildNotes.of(artifact), workload.is_like(artifact)
        except RecordUnreadable:  # of an older stage, that has another recipe: no measure of this one
            continue
        if is_like and (seconds := seconds_of(workload.parts, notes)) is not None:
            hours, device = seconds * notes.processes / 3600, notes.device or HERE
            return Cost(device_hours=hours, device=device, devices=notes.processes, **known)
    if workload.published_rate and workload.images is not None:
        hours, device = workload.images / workload.published_rate / 3600, "RTX 4090, as timm published"
        return Cost(device_hours=hours, device=device, **known)
    return Cost(**known)


def readable_hours(hours: float) -> str:
    """Return `3.2 hours`, below one `12.0 minutes`, below one of these `34 seconds`."""
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.0f} seconds"


def total_words(costs: Sequence[Cost]) -> str:
    """Sum up in words what all that is to run costs; "" where nothing is."""
    if not costs:
        return ""
    hours: dict[str, float] = {}
    for cost in costs:
        if cost.device_hours is not None:
            hours[cost.device] = hours.get(cost.device, 0.0) + cost.device_hours
    unknown, trainings = sum(cost.device_hours is None for cost in costs), sum(cost.trains for cost in costs)
    named = {device: device if device == HERE else f"one {device}" for device in hours}
    words = [f"{readable_hours(total)} of {named[device]}" for device, total in hours.items()]
    words += [f"{unknown} of a kind that has not run here yet"] if unknown else []
    disk = sum(cost.disk for cost in costs)
    words += [f"{readable_bytes(disk)} of disk"] if disk else []
    return f"{len(costs)} stages to run, {trainings} of them trainings: {', '.join(words)}"
