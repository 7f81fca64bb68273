"""The choices of what a segmentation network sees."""

from pydantic import Field, model_validator

from models.options import Options


class SegmentationTransformOptions(Options):
    """How images are scaled, cut and distorted."""

    short_side: int = Field(default=512, ge=1, le=2**16)
    """The shorter side after scaling, in pixels, unless the longer one then exceeds its limit."""

    long_side: int = Field(default=2048, ge=1, le=2**16)
    """Limit of the longer side after scaling, in pixels."""

    smallest_scale: float = Field(default=0.5, ge=0.01, le=100)
    """In training both sides above are multiplied by a number drawn from smallest_scale to largest_scale."""

    largest_scale: float = Field(default=2.0, ge=0.01, le=100)
    """See smallest_scale."""

    largest_class_share: float = Field(default=0.75, gt=0, le=1)
    """A cut in which one class has this share of the labelled pixels or more is drawn again, 10 times at most."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """How likely an image is mirrored."""

    distortion: float = Field(default=0.5, ge=0, le=1)
    """How likely each of brightness, contrast, saturation and hue is changed; 0 leaves colours alone."""

    brightness: float = Field(default=32, ge=0, le=255)
    """At most so much is added to or taken from all colours, of 255."""

    contrast: float = Field(default=0.5, ge=0, lt=1)
    """Colours are multiplied by 1 - contrast to 1 + contrast."""

    saturation: float = Field(default=0.5, ge=0, lt=1)
    """Saturation is multiplied by 1 - saturation to 1 + saturation."""

    hue: float = Field(default=0.1, ge=0, le=0.5)
    """Hue turns by at most this share of the circle (OpenCV's 18 of 180 steps)."""

    @model_validator(mode="after")
    def _in_order(self) -> "SegmentationTransformOptions":
        for least, most in (("short_side", "long_side"), ("smallest_scale", "largest_scale")):
            if getattr(self, least) > getattr(self, most):
                raise ValueError(f"{least} {getattr(self, least)} is more than {most} {getattr(self, most)}")
        return self
