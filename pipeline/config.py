"""The configuration of a build: one section per component, each section's class stands in that component's file."""

from pydantic import Field

from models.clip import ClipOptions
from models.demo_clip import DemoClipOptions
from models.kmeans_options import CodebookOptions
from models.options import Options
from pipeline.data.demo_images import DemoImagesOptions
from pipeline.data.image_batches import DecodingOptions
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.extract_features import FeatureOptions


class KClipBuildConfig(Options):
    """Everything that `kclip-build` can be told, from images to tokens."""

    images: ImageSourceOptions = Field(default_factory=ImageSourceOptions)
    """Where the images come from."""

    decoding: DecodingOptions = Field(default_factory=DecodingOptions)
    """How they become pixels."""

    clip: ClipOptions = Field(default_factory=ClipOptions)
    """The encoder; `clip.model=demo` trains the demo's own."""

    features: FeatureOptions = Field(default_factory=FeatureOptions)
    """Which patch features k-means sees."""

    codebook: CodebookOptions = Field(default_factory=CodebookOptions)
    """How they are clustered."""

    demo_images: DemoImagesOptions = Field(default_factory=DemoImagesOptions)
    """The embedded demo's pictures; used with `images.kind=demo`."""

    demo_clip: DemoClipOptions = Field(default_factory=DemoClipOptions)
    """The embedded demo's CLIP; used with `clip.model=demo`."""
