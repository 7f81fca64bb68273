"""How long trainings will take, from the throughput of the same training as it was measured here before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.evaluate.evaluate import STAGE as EVALUATE
from pipeline.fingerprint import defining_options
from pipeline.fit_vqkd import STAGE as FIT_VQKD
from pipeline.settings import Settings
from pipeline.training.options import TrainingOptions
from pipeline.wiring.base import ExpectedCall
from storage.artifact import Artifact, list_artifacts


@dataclass(frozen=True)
class TrainingCost:
    """Of one training.

    Attributes:
        images: that it takes in all, each as often as it is taken.
        device_hours: hours times devices; None when nothing like it was ever trained here.
        measured_on: "2 x NVIDIA H100"; "" when nothing was.
    """

    images: int
    device_hours: float | None = None
    measured_on: str = ""

    @property
    def words(self) -> str:
        if self.device_hours is None:
            return f"{self.images:,} images; nothing like it has run here yet"
        return f"{self.images:,} images, {readable_hours(self.device_hours)} of {self.measured_on}"


def readable_hours(hours: float) -> str:
    """`3.2 hours`, below one `12 minutes`."""
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def training_cost(call: ExpectedCall, train_images: int, settings: Settings) -> TrainingCost | None:
    """What a call costs that trains on `train_images`; None for one that trains nothing, or epochs of other images."""
    if call.config is None:
        return None
    options = _options(call)
    training: TrainingOptions = options.training
    if training.steps is None and call.protocol == "segmentation":
        return None
    used = round(train_images * getattr(options, "train_fraction", 1.0))
    images = training.total_steps(used // training.batch_size) * training.batch_size
    for made in list_artifacts(settings.layout, call.stage):
        if _is_like(made, call) and made.notes.get("images_per_second"):
            devices = int(made.notes.get("processes", 1))
            hours = images / float(made.notes["images_per_second"]) / 3600 * devices
            return TrainingCost(images, hours, f"{devices} x {made.notes.get('device', 'unknown device')}")
    return TrainingCost(images)


def _options(call: ExpectedCall) -> Any:
    """Of the training: its own section, or of a pre-training the whole configuration."""
    if call.stage == FIT_VQKD:
        return call.config.fit_vqkd
    return getattr(call.config, call.protocol) if call.stage == EVALUATE else call.config


def _is_like(made: Artifact, call: ExpectedCall) -> bool:
    """Whether it computed the same per image: the same network, and the same protocol or objective."""
    options: Mapping[str, Any] = made.recipe["options"]
    if call.stage == FIT_VQKD:
        return bool(options["network"] == defining_options(call.config.fit_vqkd.network))
    if options.get("backbone") != defining_options(call.config.backbone):
        return False
    if call.stage == EVALUATE:
        return bool(options["protocol"] == call.protocol)
    return bool(options["objective"] == call.config.pretrain.objective)
