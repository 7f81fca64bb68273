"""The choices of the demo's CLIP; what they mean: Radford et al., arXiv:2103.00020."""

from typing import Annotated

from pydantic import Field, model_validator

from models.options import FLOAT32, DecayRate, Options, Seed

STRIDE = 32  # of a ModifiedResNet, from pixels to its last stage
MAX_LOGIT_SCALE = 100.0  # section 2.5 of the paper

Layers = Annotated[int, Field(ge=1, le=100)]


class DemoClipOptions(Options):
    """Architecture and training of the demo's CLIP: 648 steps on 5,188 images, some 0.15 CPU seconds each."""

    image_size: int = Field(default=64, ge=STRIDE, le=1024, multiple_of=STRIDE)
    """Side of the square training images, in pixels."""
    width: int = Field(default=16, ge=2, le=1024, multiple_of=2)
    """Channels of the image tower's stem; its last stage has 32 times as many."""
    vision_layers: tuple[Layers, Layers, Layers, Layers] = (1, 1, 1, 1)
    """Residual blocks in each of the image tower's four stages."""
    embedding_width: int = Field(default=64, ge=1, le=8192)
    """Width of the space that images and captions share."""
    text_width: int = Field(default=64, ge=1, le=8192)
    """Width of the text transformer."""
    text_heads: int = Field(default=2, ge=1, le=1024)
    """Attention heads of the text transformer."""
    text_layers: int = Field(default=2, ge=1, le=100)
    """Blocks of the text transformer."""
    context_length: int = Field(default=12, ge=3, le=1024)
    """Caption length in tokens, start and end included; longer captions are cut."""
    epochs: int = Field(default=4, ge=1, le=100_000)
    """Passes over the images."""
    batch_size: int = Field(default=32, ge=2, le=2**20)
    """Image-caption pairs per step; the incomplete last batch of an epoch is left out."""
    learning_rate: float = Field(default=1e-3, gt=0, lt=FLOAT32)
    """Highest step size of AdamW, after the warm-up; falls to zero along a cosine."""
    text_learning_rate: float = Field(default=1e-4, ge=0, lt=FLOAT32)
    """The same for the text tower, which must not give up its classes while images tell nothing yet."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the step size rises from zero."""
    text_steps: int = Field(default=50, ge=0, le=10**9)
    """Steps before the first image, in which captions alone learn to tell the classes apart."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.98)
    """Decay rates of AdamW's two moments."""
    weight_decay: float = Field(default=0.05, ge=0, le=1e6)
    """Decay of matrices and convolutions; biases, norms and the logit scale are free of it."""
    initial_logit_scale: float = Field(default=4.0, gt=0, le=MAX_LOGIT_SCALE)
    """Factor on the cosine similarities at the start; learnt from there."""
    max_shift: int = Field(default=4, ge=0, le=1024)
    """Training images are shifted at random by up to this many pixels in each direction."""
    seed: Seed = 0
    """Seed of weights, order, templates and shifts."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "DemoClipOptions":
        if self.text_width % self.text_heads:
            raise ValueError(f"text_width {self.text_width} is not a multiple of text_heads {self.text_heads}")
        return self
