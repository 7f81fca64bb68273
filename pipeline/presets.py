"""Whole configurations, by name. Each docstring says how to run it, on what, how long it takes and what comes out."""

from collections.abc import Callable

from models.clip import ClipOptions
from models.kmeans_options import CodebookOptions
from pipeline.config import KClipBuildConfig
from pipeline.data.image_batches import DecodingOptions
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.errors import PipelineError
from pipeline.extract_features import FeatureOptions
from pipeline.overrides import did_you_mean


def demo() -> KClipBuildConfig:
    """Real handwriting on real photographs, a CLIP trained on the spot, 128 tokens; nothing is downloaded.

    `mapet kclip-build demo` -- two and a half minutes on 2 CPU cores. Expect 96 % zero-shot accuracy of the small
    CLIP, every centroid used, perplexity about 106 of 128.
    """
    return KClipBuildConfig(
        images=ImageSourceOptions(kind="demo", images_per_unit=1024),
        clip=ClipOptions(model="demo", dilate_last_stage=True, precision="fp32"),
        # 2 % of so few patches would be 13 vectors per centroid; a fifth of them is 130 (the paper has 613).
        features=FeatureOptions(sample_fraction=0.2),
        codebook=CodebookOptions(vocabulary=128),
    )


def imagenet() -> KClipBuildConfig:
    """The paper's k-CLIP: RN50x64 at 448 px, 2 % of 251 million features, 8192 centroids.

    `mapet kclip-build imagenet images.path=/data/imagenet` -- ImageFolder layout with `train/` and `val/`; for the
    Hugging Face Parquet files add `images.kind=parquet`, for tar shards `images.kind=webdataset`. One GPU; two passes
    over the images at its RN50x64 rate (about 2.2 hours each at 164 images/s, timm's figure for an RTX 4090), 41 GB of
    disk for the sample, 0.5 GB of tokens.
    """
    return KClipBuildConfig(
        images=ImageSourceOptions(kind="folder", images_per_unit=4096),
        decoding=DecodingOptions(max_bad_images=10),
        clip=ClipOptions(model="RN50x64-quickgelu", pretrained="openai", precision="fp16"),
        features=FeatureOptions(sample_fraction=0.02),
        codebook=CodebookOptions(vocabulary=8192, iterations=20),
    )


def folder() -> KClipBuildConfig:
    """Your own images: RN50 at 224 px (49 patches), 1024 centroids, 20 % of the features.

    `mapet kclip-build folder images.path=~/photos` -- a folder of images, with or without class folders. Any GPU, or a
    CPU for some thousand images (about 10 images/s a core). Needs OpenAI's RN50 weights once (a download, or
    `clip.pretrained=/path/to/RN50.pt`), and at least 1024 sampled features: 105 images.
    """
    return KClipBuildConfig(
        images=ImageSourceOptions(kind="folder", images_per_unit=1024),
        clip=ClipOptions(model="RN50-quickgelu", pretrained="openai", precision="fp16"),
        features=FeatureOptions(sample_fraction=0.2),
        codebook=CodebookOptions(vocabulary=1024),
    )


PRESETS: dict[str, Callable[[], KClipBuildConfig]] = {"demo": demo, "imagenet": imagenet, "folder": folder}


def preset(name: str) -> KClipBuildConfig:
    """The configuration called `name`. Raises PipelineError for an unknown name."""
    if name not in PRESETS:
        raise PipelineError(f"there is no preset {name!r}{did_you_mean(name, PRESETS)}; presets: {', '.join(PRESETS)}")
    return PRESETS[name]()
