"""Whole configurations, by flow and name. Each docstring says how to run it, on what, how long it takes and what comes
out."""

from collections.abc import Callable, Mapping
from typing import Any

from models.backbones import BackboneOptions
from models.clip import ClipOptions
from models.kmeans_options import CodebookOptions
from pipeline.config import EvaluateConfig, KClipBuildConfig, ObjectiveSections, PretrainConfig, ReproduceConfig
from pipeline.data.image_batches import DecodingOptions
from pipeline.data.sources.base import ImageSourceOptions
from pipeline.errors import PipelineError
from pipeline.evaluate.evaluate import EvaluateOptions
from pipeline.evaluate.fine_tune import FineTuneOptions
from pipeline.evaluate.frozen_features import FrozenFeaturesOptions
from pipeline.evaluate.tokens_as_input import TokensAsInputOptions
from pipeline.extract_features import FeatureOptions
from pipeline.overrides import did_you_mean
from pipeline.training.options import TrainingOptions


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


def pretrain_demo() -> PretrainConfig:
    """MaPeT on the demo's tokens: a ViT of 64 x 4 on 16 patches, 6 epochs.

    `mapet pretrain demo`, or `mapet pretrain demo pretrain.objective=pim` -- one to two minutes on 2 CPU cores once the
    tokens are there. Expect a token accuracy of several times the 2 % of guessing the most frequent token.
    """
    return PretrainConfig(
        **_sections(demo()),
        backbone=BackboneOptions(name="vit_demo", image_size=64),
        # Three quarters of the patches are predicted by MaPeT and PIM, 38 % by MIM and BEiT: as of the paper's 196.
        objectives=_objectives(cutting_point=5, masked=6, cae_masked=8, min_block=2),
        training=TrainingOptions(
            epochs=6, batch_size=64, peak_learning_rate=6e-3, warmup_epochs=1, precision="fp32", report_steps=20
        ),
    )


def vit_tiny() -> PretrainConfig:
    """The paper's ViT-T on ImageNet k-CLIP tokens: 300 epochs of 625 steps of 2048 images (Table 8).

    `mapet pretrain vit_tiny images.path=/data/imagenet settings.processes=8` -- any of the five objectives with
    `pretrain.objective=`; a step of MaPeT costs about 2.2 of MIM. The paper reports 75.5 % top-1 after fine-tuning,
    62.5 % with a linear probe.
    """
    return _on_imagenet("vit_tiny", cutting_point=50)


def vit_small() -> PretrainConfig:
    """The paper's ViT-S on ImageNet k-CLIP tokens: 300 epochs of 625 steps of 2048 images (Table 8).

    `mapet pretrain vit_small images.path=/data/imagenet settings.processes=8` -- the paper reports 82.1 % top-1 after
    fine-tuning, 71.6 % with a linear probe.
    """
    return _on_imagenet("vit_small", cutting_point=50)


def vit_base() -> PretrainConfig:
    """The paper's ViT-B on ImageNet k-CLIP tokens: 300 epochs of 625 steps of 2048 images (Table 8).

    `mapet pretrain vit_base images.path=/data/imagenet settings.processes=8` -- about a day on the paper's 64 V100.
    Some 160 MB of GPU memory an image: `settings.micro_batch_size=128` fits 24 GB. The paper reports 83.6 % top-1
    after fine-tuning, 73.5 % with a linear probe.
    """
    return _on_imagenet("vit_base", cutting_point=60)


def pretrain_folder() -> PretrainConfig:
    """Your own images: MaPeT with a ViT-S on 49 patches of 32 px, 100 epochs of 256 images a step.

    `mapet pretrain folder images.path=~/photos` -- on the tokens of `mapet kclip-build folder`, which it builds if need
    be. One GPU; at least 256 images (lower `training.batch_size` for fewer). For some ten thousand images raise
    `training.epochs`: what counts is the number of steps.
    """
    return PretrainConfig(
        **_sections(folder()),
        backbone=BackboneOptions(name="vit_small", patch_size=32),
        objectives=_objectives(cutting_point=13, masked=19, cae_masked=24, min_block=4),
        training=TrainingOptions(epochs=100, batch_size=256, peak_learning_rate=5e-4),
    )


def _on_imagenet(backbone: Any, *, cutting_point: int) -> PretrainConfig:
    return PretrainConfig(
        **_sections(imagenet()),
        backbone=BackboneOptions(name=backbone),
        objectives=_objectives(cutting_point=cutting_point),
    )


def _objectives(
    *, cutting_point: int, masked: int = 75, cae_masked: int = 98, min_block: int = 16
) -> ObjectiveSections:
    return ObjectiveSections.model_validate(
        {
            "mim": {"masked": masked},
            "pim": {"cutting_point": cutting_point},
            "mapet": {"cutting_point": cutting_point},
            "beit": {"masked": masked, "min_block": min_block},
            "cae": {"masked": cae_masked, "min_block": min_block},
        }
    )


def evaluate_demo() -> EvaluateConfig:
    """The demo's MaPeT pre-training: k-NN and linear heads on frozen features, a short fine-tuning on a quarter of the
    labels, and what its tokens alone say about the digits.

    `mapet evaluate demo` -- about a minute on 2 CPU cores once the pre-training is there.
    """
    short = {"precision": "fp32", "report_steps": 20, "lowest_learning_rate": 0.0, "gradient_clip": None}
    return EvaluateConfig(
        **_sections(pretrain_demo()),
        evaluate=EvaluateOptions(protocols=("frozen_features", "fine_tune", "tokens_as_input")),
        frozen_features=FrozenFeaturesOptions(
            crop_pct=1.0,
            training=TrainingOptions(
                epochs=30, batch_size=256, warmup_epochs=0, peak_learning_rate=3e-3, validation_epochs=30, **short
            ),
        ),
        # Digits: nothing may mirror them or cut them off, and there are few.
        fine_tune=FineTuneOptions(
            training=TrainingOptions(epochs=8, batch_size=64, warmup_epochs=1, peak_learning_rate=2e-3, **short),
            train_fraction=0.25,
            layer_decay=1.0,
            mixup=0.0,
            cutmix=0.0,
            auto_augment="",
            erasing=0.0,
            smallest_crop=0.8,
            flip=0.0,
            crop_pct=1.0,
        ),
        tokens_as_input=TokensAsInputOptions(
            training=TrainingOptions(
                epochs=30, batch_size=256, warmup_epochs=0, peak_learning_rate=3e-3, validation_epochs=30, **short
            ),
        ),
    )


def evaluate_vit_tiny() -> EvaluateConfig:
    """The paper's protocols on a ViT-T pre-trained with `mapet pretrain vit_tiny`: linear probe, fine-tuning for 300
    epochs (Table 9), tokens as input (Table 7).

    `mapet evaluate vit_tiny images.path=/data/imagenet settings.processes=8` -- the pre-training is
    found, or made first.
    """
    return _evaluate_on_imagenet(vit_tiny(), epochs=300, peak_learning_rate=2.5e-4, layer_decay=1.0)


def evaluate_vit_small() -> EvaluateConfig:
    """The paper's protocols on a ViT-S: linear probe, fine-tuning for 200 epochs (Table 9), tokens as input (Table 7).

    `mapet evaluate vit_small images.path=/data/imagenet settings.processes=8` -- as for `vit_tiny`.
    """
    return _evaluate_on_imagenet(vit_small(), epochs=200, peak_learning_rate=5e-3, layer_decay=0.65)


def evaluate_vit_base() -> EvaluateConfig:
    """The paper's protocols on a ViT-B: linear probe, fine-tuning for 100 epochs (Table 9), tokens as input (Table 7).

    `mapet evaluate vit_base images.path=/data/imagenet settings.processes=8` -- as for `vit_tiny`.
    """
    return _evaluate_on_imagenet(vit_base(), epochs=100, peak_learning_rate=5e-4, layer_decay=0.65)


def _evaluate_on_imagenet(
    config: PretrainConfig, *, epochs: int, peak_learning_rate: float, layer_decay: float
) -> EvaluateConfig:
    plain = FineTuneOptions()
    training = plain.training.model_copy(update={"epochs": epochs, "peak_learning_rate": peak_learning_rate})
    return EvaluateConfig(
        **_sections(config), fine_tune=plain.model_copy(update={"training": training, "layer_decay": layer_decay})
    )


def reproduce_demo() -> ReproduceConfig:
    """MIM, PIM and MaPeT on the demo's tokens, side by side, and what these tokens alone say about the digits.

    `mapet reproduce demo` -- about six minutes on 2 CPU cores, tokens included. Six epochs are too few for a backbone
    that any evaluation could tell from a fresh one: `mapet evaluate demo` shows it.
    """
    tokens_only = {"evaluate": EvaluateOptions(protocols=("tokens_as_input",))}
    return ReproduceConfig(**_sections(evaluate_demo()) | tokens_only)


def _sections(config: KClipBuildConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in type(config).model_fields}


Presets = Mapping[str, Callable[[], KClipBuildConfig]]
PRESETS: Mapping[str, Presets] = {
    "kclip-build": {"demo": demo, "imagenet": imagenet, "folder": folder},
    "pretrain": {
        "demo": pretrain_demo,
        "folder": pretrain_folder,
        "vit_tiny": vit_tiny,
        "vit_small": vit_small,
        "vit_base": vit_base,
    },
    "evaluate": {
        "demo": evaluate_demo,
        "vit_tiny": evaluate_vit_tiny,
        "vit_small": evaluate_vit_small,
        "vit_base": evaluate_vit_base,
    },
    "reproduce": {"demo": reproduce_demo},
}


def preset(flow: str, name: str) -> KClipBuildConfig:
    """The configuration called `name` of a flow. Raises PipelineError for an unknown name."""
    presets = PRESETS[flow]
    if name not in presets:
        raise PipelineError(
            f"{flow} has no preset {name!r}{did_you_mean(name, presets)}; presets: {', '.join(presets)}"
        )
    return presets[name]()
