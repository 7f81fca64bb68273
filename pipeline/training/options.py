"""What a training run can be told. Defaults are the paper's (Table 8).

The released code trains ten more epochs at the lowest rate (timm's default cooldown), which the paper does not mention;
here 300 epochs are 300.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from models.options import FLOAT32, DecayRate, Options
from pipeline.engine.words import counted

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class TrainingLength:
    """How long a training is: `epochs` passes over its images, or `steps`; the other one is None, both where nobody
    recorded it."""

    epochs: int | None = None
    steps: int | None = None

    @property
    def words(self) -> str:
        """`300 epochs`, `1 step`, `unknown epochs`."""
        if self.steps is not None:
            return counted(self.steps, "step")
        return "unknown epochs" if self.epochs is None else counted(self.epochs, "epoch")

    @property
    def record(self) -> dict[str, int]:
        """What is known of it, by its option: `{"epochs": 300}`."""
        return {name: number for name, number in vars(self).items() if number is not None}

    @property
    def place(self) -> tuple[int, int]:
        """To sort by: what is unknown, then epochs, then steps."""
        if self.steps is not None:
            return 2, self.steps
        return (0, 0) if self.epochs is None else (1, self.epochs)


class TrainingOptions(Options):
    """How weights are trained."""

    epochs: int | None = Field(default=300, ge=1, le=10**6)
    """Passes over the training images, warm-up included; there is no cooldown after them. null: `steps` are given."""

    steps: int | None = Field(default=None, ge=1, le=10**9)
    """Steps in all, in place of `epochs`, which is null then; of the last epoch some images may stay out."""

    batch_size: int = Field(default=2048, ge=1, le=2**20)
    """Images per step, over all processes and accumulated pieces; the last images of an epoch that do not fill a step
    are left out of it (other ones in every epoch)."""

    peak_learning_rate: float = Field(default=1.5e-3, gt=0, lt=FLOAT32)
    """After warm-up; as it is, not scaled by the batch size."""

    decay: Literal["cosine", "linear", "cosine_after_warmup"] = "cosine"
    """How the learning rate falls from the peak to the lowest one. `cosine` and `linear` are laid over the whole run,
    and the warm-up hides their first part; `cosine_after_warmup` begins where the warm-up ends, as BEiT v2's does."""

    lowest_learning_rate: float = Field(default=1e-5, ge=0, lt=FLOAT32)
    """At the end of the decay."""

    first_learning_rate: float = Field(default=1e-6, ge=0, lt=FLOAT32)
    """At the start of the warm-up, which grows linearly."""

    warmup_epochs: int = Field(default=10, ge=0, le=10**6)
    """Epochs of growing learning rate, counted in `epochs`."""

    warmup_steps: int = Field(default=0, ge=0, le=10**9)
    """The same in steps, in place of `warmup_epochs`, which is 0 then."""

    schedule: Literal["step", "epoch"] = "step"
    """`step`: the learning rate changes at every step; `epoch`: once per epoch, as in the released code."""

    weight_decay: float = Field(default=0.05, ge=0, le=1e6)
    """Of matrices; biases, norms, LayerScale, positions and class token have none. The mask token has, as released."""

    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """AdamW's decay rates of gradient and squared gradient."""

    epsilon: float = Field(default=1e-8, gt=0, le=1)
    """AdamW's epsilon."""

    gradient_clip: float | None = Field(default=3.0, gt=0, lt=FLOAT32)
    """Longest gradient, as 2-norm over all parameters; longer ones are scaled down. None: none is."""

    precision: Precision = "bf16"
    """Autocast of forward and backward: `bf16`, `fp16` (with loss scaling, as released), or `fp32` (none)."""

    report_steps: int = Field(default=50, ge=1, le=10**9)
    """The curves get a point, the mean since the last one, every so many steps."""

    validation_epochs: int = Field(default=1, ge=1, le=10**6)
    """Validate after every so many epochs, and after the last."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingOptions":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"epochs {self.epochs} and steps {self.steps}; give one of them, null for the other")
        if self.warmup_epochs and self.warmup_steps:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} and warmup_steps {self.warmup_steps}; give one of them, 0 for the "
                "other"
            )
        for warmup, length in (("warmup_epochs", "epochs"), ("warmup_steps", "steps")):
            given, most = getattr(self, warmup), getattr(self, length)
            if most is not None and given > most:
                raise ValueError(f"{warmup} {given} is more than {length} {most}")
        return self

    @property
    def length(self) -> TrainingLength:
        """In epochs or in steps, whichever was given."""
        return TrainingLength(self.epochs, self.steps)

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return how many steps a run has."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * steps_per_epoch
