"""The training loop: it knows a loss, not which objective, model or data it comes from.

    learner(*batch.inputs) -> loss, metrics;  loss.backward();  clip;  optimizer.step()

Everything that a step depends on is either in the checkpoint (weights, optimizer, loss scale, the running means) or a
pure function of the step (order of the images, learning rate, corruption), so a run that was killed and goes on
computes, on a CPU, the very numbers of one that was not.
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from models.encoders.arithmetic import no_tf32
from pipeline.data.share import Share
from pipeline.engine.batches import Batch, WaitClock, in_groups, on_device
from pipeline.engine.errors import PipelineError
from pipeline.engine.memory import SMALLER_NETWORK, shortage_explained, step_needs
from pipeline.engine.parts import Parts
from pipeline.engine.processes import Processes
from pipeline.engine.settings import Settings
from pipeline.engine.stops import is_stopped, raise_if_stopped
from pipeline.engine.threads import threads_for
from pipeline.engine.words import counted
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.energy import EnergyMeter
from pipeline.training.history import History
from pipeline.training.interrupts import HeldInterrupts
from pipeline.training.meters import RunningMeans, Speed
from pipeline.training.optimization import Schedule, build_optimizer
from pipeline.training.options import TrainingOptions
from pipeline.training.plan import StepPlan

logger = logging.getLogger("mapet.training")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
CHECKPOINTS = "checkpoints"


class LearnerOutput(Protocol):
    """The mean loss of a batch, and means of whatever else is worth a curve, detached.

    Means over images: a sum over them, each by itself, divided by how many they are. A step is computed in pieces, by
    several processes, and a piece counts as much as it has images; what divides by anything that differs from piece to
    piece, such as labelled pixels, makes another loss of each way to cut the step.
    """

    @property
    def loss(self) -> Tensor: ...

    @property
    def metrics(self) -> dict[str, Tensor]: ...


class Feed(Protocol):
    """Where batches come from."""

    @property
    def train_rows(self) -> np.ndarray: ...

    @property
    def val_rows(self) -> np.ndarray:
        """May be empty: then nothing is validated."""

    @property
    def repeats(self) -> int:
        """How often a step takes each of its images."""

    def training(self, shares: Iterable[Share]) -> Iterator[Batch]: ...

    def validation(self, groups: Iterable[np.ndarray]) -> Iterator[Batch]: ...


class Reporter(Protocol):
    """Who is told how it goes: a tracker and a progress bar, or the process that started this one."""

    def begin(self, images: int, *, done: int) -> None:
        """Begin to report: of `images` that the run takes in all, `done` were taken by an earlier one."""

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def advance(self, images: int, note: str) -> None: ...


def images_at_once(options: TrainingOptions, settings: Settings, processes: Processes) -> int:
    """Return how many images of a step a process computes at once, in training and in what follows it."""
    return settings.micro_batch_size or math.ceil(options.batch_size / processes.size)


class Trainer:
    """One process's part of a training run.

    `learner` is a module on the CPU; `forward(*inputs)` of a batch's inputs returns a `LearnerOutput`, and
    `parameter_groups(weight_decay)` says what learns, and how, as timm's functions of that name do. In evaluation mode
    the same forward is the validation. A learner with something that no gradient moves may have `finish_step(total)`,
    which is called after every step of the optimizer; `total(tensor)` sums a tensor over all processes, in place.
    """

    def __init__(
        self,
        learner: nn.Module,
        feed: Feed,
        options: TrainingOptions,
        *,
        seed: int,
        folder: Path,
        settings: Settings,
        processes: Processes,
        reporter: Reporter,
    ) -> None:
        self._options, self._settings, self._processes, self._reporter = options, settings, processes, reporter
        self._feed = feed
        self._plan = StepPlan(feed.train_rows, options, seed=seed, repeats=feed.repeats)
        with shortage_explained("the network to train", SMALLER_NETWORK):
            learner = processes.with_shared_norms(learner).to(processes.device)
            self._learner = learner.train()
            self._finish_step = getattr(learner, "finish_step", None)
            self._model = processes.wrap(torch.compile(learner) if settings.compile else learner)  # type: ignore[arg-type]
        self._optimizer = build_optimizer(learner.parameter_groups(options.weight_decay), options)  # type: ignore[operator]
        self._schedule = Schedule(self._optimizer, options, steps_per_epoch=self._plan.steps_per_epoch)
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=options.precision == "fp16")
        self._piece = images_at_once(options, settings, processes)
        self._means = RunningMeans()
        self._step = self._saved = 0  # finished ones, and as many in the last checkpoint
        self._parts = Parts()
        self._history = History(folder)
        mirror = settings.layout.mirror(folder / CHECKPOINTS)
        self._checkpoints = Checkpoints(folder / CHECKPOINTS, settings.keep_checkpoints, mirror)

    def run(self) -> dict[str, Any]:
        """Train to the last step; returns how fast it went, and on what.

        Raises:
            PipelineError: a loss or gradient is not finite, or the device's memory does not suffice. The last
                checkpoint stays.
        """
        self._resume()
        started, first, clock = time.monotonic(), self._step, WaitClock()
        shares = self._plan.shares(self._step, process=self._processes.rank, processes=self._processes.size)
        energy = EnergyMeter(self._processes.device)
        is_float32 = self._options.precision == "fp32"
        with threads_for(self._learner), no_tf32() if is_float32 else nullcontext(), HeldInterrupts() as interrupts:
            batches = on_device(clock.timed(self._feed.training(shares)), self._processes.device)
            speed = Speed(clock)
            while self._step < self._plan.steps:
                stop = self._train_step(next(batches), stop=interrupts.received is not None or is_stopped())
                speed.advance(self._options.batch_size)
                self._reporter.advance(self._options.batch_size, speed.note())
                self._report(speed)
                if stop or self._step % self._settings.checkpoint_steps == 0:
                    self._save()
                if stop:
                    self._processes.wait_for_all()  # or torchrun would end the one that is still writing
                    interrupts.deliver()
                    raise_if_stopped()
                    raise KeyboardInterrupt  # another process got the signal
        seconds = max(time.monotonic() - started - self._parts.seconds("validation"), 1e-9)
        self._parts.add("training", (self._step - first) * self._options.batch_size, seconds)
        return self._parts.notes(
            {
                "images_per_second": self._parts.rate("training"),
                "data_wait_share": round(clock.seconds / seconds, 4),
                **self._processes.notes(energy.watt_hours()),
            }
        )

    def _resume(self) -> None:
        self._processes.by_first(self._checkpoints.fetch)
        state = self._checkpoints.latest(self._processes.device)
        if state is not None:
            self._learner.load_state_dict(state["learner"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._scaler.load_state_dict(state["scaler"])
            self._means = RunningMeans(**state["means"])
            self._step = self._saved = state["step"]
        self._processes.wait_for_all()  # nobody writes while another still looks for what to go on from
        if self._processes.is_first:
            images = self._options.batch_size
            self._reporter.begin(self._plan.steps * images, done=self._step * images)
            if state is not None and "history" in state:
                self._history.restore(state["history"])
            for entry in self._history.rewind(self._step):
                self._reporter.metrics(entry, entry.pop("step"))
            if state is not None:
                logger.info("going on after step %d of %d", self._step, self._plan.steps)

    def _save(self) -> None:
        self._saved = self._step
        if self._processes.is_first:
            self._history.sync()
            state = {
                "learner": self._learner.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "means": vars(self._means),
                "step": self._step,
                "history": self._history.text(),
            }
            self._checkpoints.save(self._step, state)

    def _train_step(self, batch: Batch, *, stop: bool) -> bool:
        """Update the weights once; return whether some process wants to stop."""
        rate = self._schedule.set(self._step)
        with shortage_explained(*step_needs(min(self._piece, len(batch)), self._settings)):
            values = self._backward(batch)
        self._scaler.unscale_(self._optimizer)
        longest = math.inf if self._options.gradient_clip is None else self._options.gradient_clip
        norm = nn.utils.clip_grad_norm_(self._learner.parameters(), longest)
        # One exchange and one look at the device per step, for everything that is said and decided about it.
        means = self._processes.sum(torch.stack([*values.values(), torch.full_like(norm, stop)]))
        *numbers, stopping, length = torch.cat([means, norm[None]]).tolist()
        measured = dict(zip(values, numbers, strict=True)) | {"gradient_norm": length}
        self._refuse_non_finite(measured, batch)
        with shortage_explained("the optimizer's two numbers for each weight", SMALLER_NETWORK):
            self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._finish_step is not None:
            self._finish_step(self._processes.sum)
        self._step += 1
        self._means.add({**measured, "learning_rate": rate})
        return stopping > 0

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the gradients of the mean loss over the images of all processes; return this process's part of the
        means."""
        self._optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        pieces = list(batch.split(self._piece))
        for number, piece in enumerate(pieces, start=1):
            local = self._processes.size > 1 and number < len(pieces)
            with self._model.no_sync() if local else nullcontext():  # type: ignore[operator]
                output = self._forward(self._model, piece)
                share = len(piece) / self._options.batch_size
                # Gradients are averaged over processes; the mean over images is a sum of shares.
                self._scaler.scale(output.loss * (share * self._processes.size)).backward()
            for name, value in {"loss": output.loss.detach(), **output.metrics}.items():
                totals[name] = totals.get(name, 0.0) + value.float() * share
        return totals

    def _forward(self, module: nn.Module, batch: Batch) -> LearnerOutput:
        dtype = _AUTOCAST.get(self._options.precision)
        with torch.autocast(self._processes.device.type, dtype, enabled=dtype is not None):
            output: LearnerOutput = module(*batch.inputs)
        return output

    def _report(self, speed: Speed) -> None:
        """Report a point of the curves, and of the validation, where one is due."""
        epochs = self._step / self._plan.steps_per_epoch
        is_last = self._step == self._plan.steps
        if is_last or self._step % self._options.report_steps == 0:
            self._record(self._means.take(), epochs)
            self._tell(speed.take())
        if is_last or self._step % (self._plan.steps_per_epoch * self._options.validation_epochs) == 0:
            what = f"validating {counted(self._piece, 'image')} at once"
            with (
                self._parts.timed("validation", len(self._feed.val_rows)),
                shortage_explained(what, "set settings.micro_batch_size to less"),
            ):
                self._record(self._validate(), epochs)
            speed.take()  # the time of the validation is not the training's

    def _record(self, values: Mapping[str, float], epochs: float) -> None:
        if self._processes.is_first and values:
            self._history.append(self._step, epochs, values)
            self._tell({**values, "epoch": epochs})

    def _tell(self, values: Mapping[str, float]) -> None:
        if self._processes.is_first:
            self._reporter.metrics(values, self._step)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Return means over all validation images, without stochastic depth or augmentation."""
        self._processes.share_buffers(self._learner)
        rows, size = self._feed.val_rows, self._processes.size
        if not len(rows):
            return {}
        own = self._processes.share(rows) if len(rows) >= size else rows
        totals: dict[str, Tensor] = {}
        self._learner.eval()
        for batch in on_device(self._feed.validation(in_groups(own, self._piece)), self._processes.device):
            output = self._forward(self._learner, batch)
            for name, value in {"images": torch.ones_like(output.loss), "loss": output.loss, **output.metrics}.items():
                totals[name] = totals.get(name, 0.0) + value.float() * len(batch)
        self._learner.train()
        images, *sums = self._processes.sum(torch.stack(list(totals.values()))).tolist()
        return {f"val_{name}": total / images for name, total in zip(list(totals)[1:], sums, strict=True)}

    def _refuse_non_finite(self, measured: Mapping[str, float], batch: Batch) -> None:
        if math.isfinite(measured["loss"]):
            if math.isfinite(measured["gradient_norm"]) or self._scaler.is_enabled():  # fp16 skips such a step
                return
            what = "gradient"
        else:
            what = "loss"
        rows = [row for part in self._processes.gather(self._non_finite_rows(batch)) for row in part]
        everybody = self._options.batch_size
        which = f"image rows {', '.join(map(str, rows[:20]))}{', ...' if len(rows) > 20 else ''}"
        if len(rows) in (0, everybody):  # not an image's fault: name what the step was computed from
            first = ", ".join(map(str, batch.rows[:5].tolist()))
            which = f"{'no' if not rows else 'every'} image alone, the step's rows are {first}, ..."
        kept = f"the last checkpoint is kept (step {self._saved})" if self._saved else "nothing is saved yet"
        raise PipelineError(
            f"step {self._step + 1}: the {what} is not finite ({which}); {kept}. Lower "
            "training.peak_learning_rate, use training.precision=bf16 or fp32, or look at these images"
        )

    @torch.no_grad()
    def _non_finite_rows(self, batch: Batch) -> list[int]:
        """Return the rows of this process whose own loss is not finite."""
        self._learner.eval()  # BatchNorm cannot normalise a single image
        losses = [self._forward(self._learner, image).loss for image in batch.split(1)]
        wrong = ~torch.stack(losses).isfinite().cpu().numpy()
        return [int(row) for row in batch.rows[wrong]]
