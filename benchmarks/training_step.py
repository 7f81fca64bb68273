"""The training step of MaPeT against the official code's, and every objective's against MIM's.

A step is what repeats in pre-training: forward, backward, gradient clipping and AdamW on one batch of 224 pixels, new
masks every time. Images are random and in memory; reading them is measured elsewhere. Compared are CPU-seconds (all
threads; on a busy machine the better measure), wall seconds, bytes saved for backward, and peak memory. The same steps
on a GPU are measured by `gpu_check`.

The official step runs from a checkout of the official code that the variable OFFICIAL_MAPET names: its masks, its
collating, its loop, see `official_mapet`. Without one it is left out.
"""

import os
import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Measurement, Seconds, in_own_process, interleaved, median_ratio
from benchmarks.official_mapet import CLIP_GRAD, OfficialCode, OfficialStep, threads
from models.masking import corruption_seeds
from models.objectives import OBJECTIVES
from models.objectives.base import Objective
from models.objectives.mapet import MaPeT
from models.vit.attention import Kernels, choose_way
from models.vit.backbones import build_backbone
from models.vit.options import BackboneOptions
from pipeline.training.optimization import build_optimizer
from pipeline.training.options import TrainingOptions

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
TINY, SMALL, BASE = (BackboneOptions(name=name) for name in ("vit_tiny", "vit_small", "vit_base"))
THREADS = 2


@dataclass(frozen=True)
class Setting:
    """What is the same for all steps that are compared."""

    backbone: BackboneOptions
    precision: Precision = "fp32"
    batch: int = 16
    vocabulary: int = 8192
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"training_step.{self.backbone.name}.{self.precision}"

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16")


class ObjectiveStep:
    """One step of ours; calling it again draws new masks for the same images."""

    def __init__(
        self,
        setting: Setting,
        name: str,
        *,
        options: Mapping[str, int] | None = None,
        compiled: bool = False,
        attention: Kernels = "auto",
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        side, build = setting.backbone.image_size, cast(Callable[..., Objective], OBJECTIVES[name].load())
        chosen = OBJECTIVES[name].options_class(**options or {})
        backbone = build_backbone(setting.backbone, seed=0)
        self.objective = build(backbone, setting.vocabulary, chosen, seed=0).to(setting.device)
        self.images = torch.randn(setting.batch, 3, side, side, generator=generator).to(setting.device)
        tokens = torch.randint(setting.vocabulary, (setting.batch, self.objective.patches), generator=generator)
        self.tokens = tokens.to(setting.device)
        self.forward = torch.compile(self.objective) if compiled else self.objective
        self.optimizer = build_optimizer([{"params": list(self.objective.parameters())}], TrainingOptions())
        self.setting, self.steps, self.attention = setting, 0, attention

    def __call__(self) -> Tensor:
        """Take a step and return its loss, which is not waited for."""
        loss = self.loss()
        loss.backward()
        clip_grad_norm_(self.objective.parameters(), CLIP_GRAD)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def loss(self) -> Tensor:
        """Return the loss of the forward pass alone, with new masks each time."""
        self.steps += 1
        choose_way(self.attention)  # of this process; steps that are compared may differ in it
        rows = torch.arange(self.setting.batch, device=self.setting.device)
        with self.setting.autocast():
            return self.forward(self.images, self.tokens, corruption_seeds(0, self.steps, rows)).loss

    def flops(self) -> int:
        """Count the operations of one step: three times those of the forward pass, as usual."""
        # With gradients: without, the counter fails on a parameter that a module is given, as CAE's regressor is.
        with FlopCounterMode(display=False) as counter, self.setting.autocast():
            self.objective(self.images, self.tokens, torch.arange(self.setting.batch, device=self.setting.device))
        return 3 * counter.get_total_flops()


Step = ObjectiveStep | OfficialStep


def run() -> list[Measurement]:
    """Measure time and memory of training steps on the CPU."""
    checkout = os.environ.get("OFFICIAL_MAPET")
    code = official_code(checkout)
    return [*_timed(code), *_memory(code, checkout)]


def official_code(checkout: str | None) -> OfficialCode | None:
    """Load the official code; None, and a word about it, without a checkout."""
    if checkout:
        return OfficialCode.load(Path(checkout))
    print("training_step: without the official step, OFFICIAL_MAPET names no checkout of the official code")
    return None


def _timed(code: OfficialCode | None) -> list[Measurement]:
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not native:
        print("training_step: bf16 is not timed, this processor only emulates it, at a tenth of fp32's speed")
    found = []
    with threads(THREADS):
        for precision in PRECISIONS if native else PRECISIONS[:1]:
            found += times(Setting(TINY, precision), code, rounds=5)
            found += times(Setting(SMALL, precision), code, rounds=3, others=False)
    return found


def _memory(code: OfficialCode | None, checkout: str | None) -> list[Measurement]:
    settings = [Setting(backbone, precision) for precision in PRECISIONS for backbone in (TINY, SMALL, BASE)]
    found = [item for setting in settings for item in saved_bytes(setting, code)]
    return found + peak_memory(Setting(TINY), checkout)


def times(setting: Setting, code: OfficialCode | None, *, rounds: int, others: bool = True) -> list[Measurement]:
    """Time the official step against MaPeT's; with `others` also MaPeT's windows in blocks against its mask, and every
    objective against MIM with MaPeT's number of predicted patches and with 75."""
    steps: dict[str, Step] = {"mapet": (mapet := ObjectiveStep(setting, "mapet"))}
    if code:
        steps["official"] = official_step(code, mapet)
    mims = {f"mim{count}": count for count in (mapet.objective.predicted, 75)} if others else {}
    steps |= {name: ObjectiveStep(setting, "mim", options={"masked": count}) for name, count in mims.items()}
    names = ("pim", "beit", "cae") if others else ()
    steps |= {name: ObjectiveStep(setting, name) for name in names}
    if others:
        steps["mapet_blocks"] = ObjectiveStep(setting, "mapet", attention="blocks")
    for step in steps.values():
        step()  # first allocations
    seconds = interleaved(steps, rounds=rounds)
    found = [_ratio(setting, seconds, "official", "mapet", clock) for clock in ("cpu", "wall")] if code else []
    found += [_ratio(setting, seconds, "mapet_blocks", "mapet", "cpu")] if others else []
    return found + [_ratio(setting, seconds, name, mim, "cpu") for mim in mims for name in ("mapet", *names)]


def official_step(code: OfficialCode, ours: ObjectiveStep, *, keep_masks: bool = False) -> OfficialStep:
    """Build the official step from the weights of ours, which it does not share."""
    assert isinstance(ours.objective, MaPeT)
    autocast = ours.setting.autocast
    return OfficialStep(code, ours.objective, ours.images, ours.tokens, autocast=autocast, keep_masks=keep_masks)


def _ratio(
    setting: Setting, seconds: Mapping[str, list[Seconds]], name: str, base: str, clock: Literal["cpu", "wall"]
) -> Measurement:
    values, against = ([getattr(each, clock) for each in seconds[key]] for key in (name, base))
    unit = f"{'CPU-' if clock == 'cpu' else ''}seconds per step of {setting.batch} images"
    return Measurement(
        f"{setting.name}.{name}.{clock}_to_{base}",
        statistics.median(values),
        unit,
        f"{base}: {statistics.median(against):.3g}",
        median_ratio(values, against),
    )


def saved_bytes(setting: Setting, code: OfficialCode | None) -> list[Measurement]:
    """Measure what one more image adds to the tensors that autograd keeps for backward: 3 images less 2.

    With a single image some copies are none, as permuting axes of length 1 moves nothing.
    """
    ours, theirs = [], []
    for batch in (2, 3):
        step = ObjectiveStep(replace(setting, batch=batch), "mapet")
        ours.append(bytes_kept_for_backward(step.loss))
        if code:
            theirs.append(bytes_kept_for_backward(official_step(code, step).loss))
    return _slope(f"{setting.name}.saved", ours, theirs, images=1, unit="MB saved for backward per additional image")


def bytes_kept_for_backward(forward: Callable[[], object]) -> int:
    """Count the bytes that autograd keeps, each storage once, however many tensors lie in it."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())  # held, so that no address comes twice
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def peak_memory(setting: Setting, checkout: str | None, *, few: int = 4, many: int = 12) -> list[Measurement]:
    """Measure what one more image adds to the peak memory of a process that takes a step."""
    peaks: dict[bool, list[int]] = {False: [], True: []}
    for official in (False, True) if checkout else (False,):
        for batch in (few, many):
            arguments = (replace(setting, batch=batch), checkout if official else None)
            peaks[official].append(in_own_process(take_a_step, *arguments).peak_anonymous)
    unit = "MB of peak anonymous memory per additional image"
    return _slope(f"{setting.name}.peak", peaks[False], peaks[True], images=many - few, unit=unit)


def take_a_step(setting: Setting, checkout: str | None) -> None:
    """Take a step of the official code if there is a checkout of it, else of ours; runs in a process of its own."""
    with threads(THREADS):
        ours = ObjectiveStep(setting, "mapet")
        step = official_step(OfficialCode.load(Path(checkout)), ours) if checkout else ours
        step()


def _slope(name: str, ours: list[int], theirs: list[int], *, images: int, unit: str) -> list[Measurement]:
    """Derive megabytes per additional image from measurements with fewer and with more images."""
    value = (ours[1] - ours[0]) / images / 1e6
    if not theirs:
        return [Measurement(name, value, unit)]
    against = (theirs[1] - theirs[0]) / images / 1e6
    return [Measurement(name, value, unit, f"official: {against:.1f}", value / against)]
