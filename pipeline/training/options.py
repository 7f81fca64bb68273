"""What a training run can be told. Defaults are the paper's (Table 8).

The released code trains ten more epochs at the lowest rate (timm's default cooldown), which the paper does not mention;
here 300 epochs are 300.
"""

from typing import Literal

from pydantic import Field, model_validator

from models.options import Options

Precision = Literal["fp32", "bf16", "fp16"]


class TrainingOptions(Options):
    """How weights are trained."""

    epochs: int = Field(default=300, ge=1)
    """Passes over the training images, warm-up included; there is no cooldown after them."""

    batch_size: int = Field(default=2048, ge=1)
    """Images per step, over all processes and accumulated pieces; the last images of an epoch that do not fill a step
    are left out of it (other ones in every epoch)."""

    peak_learning_rate: float = Field(default=1.5e-3, gt=0)
    """After warm-up; as it is, not scaled by the batch size."""

    lowest_learning_rate: float = Field(default=1e-5, ge=0)
    """At the end of the cosine."""

    first_learning_rate: float = Field(default=1e-6, ge=0)
    """At the start of the warm-up, which grows linearly."""

    warmup_epochs: int = Field(default=10, ge=0)
    """Epochs of growing learning rate; the cosine is that of all epochs, its first part is covered by the warm-up."""

    schedule: Literal["step", "epoch"] = "step"
    """`step`: the learning rate changes at every step; `epoch`: once per epoch, as in the released code."""

    weight_decay: float = Field(default=0.05, ge=0)
    """Of matrices; biases, norms, LayerScale, positions and class token have none. The mask token has, as released."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of gradient and squared gradient."""

    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""

    gradient_clip: float | None = Field(default=3.0, gt=0)
    """Longest gradient, as 2-norm over all parameters; longer ones are scaled down. None: none is."""

    precision: Precision = "bf16"
    """Autocast of forward and backward: `bf16`, `fp16` (with loss scaling, as released), or `fp32` (none)."""

    report_steps: int = Field(default=50, ge=1)
    """The curves get a point, the mean since the last one, every so many steps."""

    validation_epochs: int = Field(default=1, ge=1)
    """Validate after every so many epochs, and after the last."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingOptions":
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} is more than epochs {self.epochs}")
        return self
