"""Configurations of `mapet evaluate`: those of the pre-training, and what is asked of its backbone."""

from typing import Any

from models.heads.segmenter_options import SegmenterOptions
from pipeline.configuration.config import (
    EvaluateConfig,
)
from pipeline.configuration.presets.pretrain import pretrain_demo, pretrain_folder, pretrain_on_imagenet
from pipeline.configuration.presets.sections import sections_of
from pipeline.configuration.variations import with_paper_recipe
from pipeline.data.segmentation_options import SegmentationTransformOptions
from pipeline.paper.recipes import PAPER_RECIPES
from pipeline.stages.evaluate.evaluation_options import (
    FineTuneOptions,
    FrozenFeaturesOptions,
    LinearProbeOptions,
    SegmentationOptions,
    TokensAsInputOptions,
    ZeroShotOptions,
)
from pipeline.stages.evaluate.protocols import EvaluateOptions
from pipeline.training.options import TrainingOptions

_DEMO_PROTOCOLS = ("frozen_features", "fine_tune", "segmentation", "tokens_as_input", "zero_shot")


def evaluate_demo() -> EvaluateConfig:
    """The demo's MaPeT pre-training: k-NN and linear heads on frozen features, a short fine-tuning and segmentation,
    and what its tokens alone say about the digits.

    `mapet evaluate demo` -- about a minute on 2 CPU cores once the pre-training is there.
    """
    short = {"precision": "fp32", "report_steps": 20, "lowest_learning_rate": 0.0, "gradient_clip": None}
    # Nothing may mirror digits or cut them off.
    digits = FineTuneOptions(
        training=TrainingOptions(epochs=4, batch_size=64, warmup_epochs=1, peak_learning_rate=2e-3, **short),
        layer_decay=1.0,
        mixup=0.0,
        cutmix=0.0,
        auto_augment="",
        erasing=0.0,
        smallest_crop=0.8,
        flip=0.0,
        crop_pct=1.0,
    )
    return EvaluateConfig(
        **sections_of(pretrain_demo()),
        evaluate=EvaluateOptions(protocols=_DEMO_PROTOCOLS),
        frozen_features=FrozenFeaturesOptions(
            crop_pct=1.0,
            training=TrainingOptions(
                epochs=30, batch_size=256, warmup_epochs=0, peak_learning_rate=3e-3, validation_epochs=30, **short
            ),
        ),
        fine_tune=digits,
        scratch=digits,  # without layer decay, for as long: so short a training needs none of DeiT's augmentation
        tokens_as_input=TokensAsInputOptions(
            training=TrainingOptions(
                epochs=15, batch_size=256, warmup_epochs=0, peak_learning_rate=3e-3, validation_epochs=15, **short
            ),
        ),
        # Images as they are drawn: what moves or recolours them would need a longer training.
        segmentation=SegmentationOptions(
            classes=11,
            layer_decay=1.0,
            drop_path_rate=0.0,
            stride=43,
            network=SegmenterOptions(image_size=64, blocks=(0, 1, 2, 3), channels=32, auxiliary_channels=32),
            transforms=SegmentationTransformOptions(
                short_side=64,
                long_side=256,
                smallest_scale=1.0,
                largest_scale=1.0,
                largest_class_share=1.0,
                flip=0.0,
                distortion=0.0,
            ),
            training=TrainingOptions(
                epochs=None,
                steps=500,
                batch_size=8,
                peak_learning_rate=8e-2,
                decay="linear",
                warmup_epochs=0,
                warmup_steps=50,
                validation_epochs=4,
                **short,
            ),
        ),
        zero_shot=ZeroShotOptions(templates="demo"),
    )


def evaluate_folder() -> EvaluateConfig:
    """Your own images, in class folders below `train/` and `val/`: what the ViT-S of `mapet pretrain folder` knows of
    the classes, by k-NN and linear heads, after fine-tuning it for 100 epochs, and from its tokens alone.

    `mapet evaluate folder images.path=~/photos` -- the pre-training is found, or made first. One GPU; minutes for some
    thousand images once it is there. At least 64 labelled images in `train/` (lower `fine_tune.training.batch_size`
    and the others for fewer). `evaluate.keep_weights=true` keeps the fine-tuned classifier, `mapet export` copies it.
    """
    small: dict[str, Any] = {"batch_size": 64, "gradient_clip": None}  # of 1024, few data sets of one's own have a step
    head: dict[str, Any] = {**small, "weight_decay": 1e-4, "lowest_learning_rate": 0.0, "peak_learning_rate": 1e-3}
    cached = TrainingOptions(epochs=50, warmup_epochs=0, precision="fp32", validation_epochs=50, **head)
    tokens = TrainingOptions(epochs=50, warmup_epochs=5, peak_learning_rate=1e-3, **small)
    return EvaluateConfig(
        **sections_of(pretrain_folder()),
        evaluate=EvaluateOptions(protocols=("frozen_features", "fine_tune", "tokens_as_input")),
        frozen_features=FrozenFeaturesOptions(training=cached),
        linear_probe=LinearProbeOptions(training=TrainingOptions(epochs=50, warmup_epochs=0, **head)),
        fine_tune=FineTuneOptions(
            # The paper's rate for ViT-S, 5e-3 for 1024 images, scaled to 64.
            training=TrainingOptions(
                epochs=100, warmup_epochs=5, peak_learning_rate=3e-4, lowest_learning_rate=1e-6, **small
            ),
            layer_decay=PAPER_RECIPES["vit_small"].layer_decay,
        ),
        tokens_as_input=TokensAsInputOptions(training=tokens),
        tokens_as_input_vit=TokensAsInputOptions(network="vit", training=tokens),
    )


def evaluate_vit_tiny() -> EvaluateConfig:
    """The paper's protocols on a ViT-T pre-trained with `mapet pretrain vit_tiny`: linear probe, fine-tuning for 300
    epochs (Table 9), tokens as input (Table 7).

    `mapet evaluate vit_tiny images.path=/data/imagenet settings.processes=8` -- the pre-training is
    found, or made first.
    """
    return with_paper_recipe(evaluate_on_imagenet(), "vit_tiny")


def evaluate_vit_small() -> EvaluateConfig:
    """The paper's protocols on a ViT-S: linear probe, fine-tuning for 200 epochs (Table 9), tokens as input (Table 7).

    `mapet evaluate vit_small images.path=/data/imagenet settings.processes=8` -- as for `vit_tiny`.
    """
    return with_paper_recipe(evaluate_on_imagenet(), "vit_small")


def evaluate_vit_base() -> EvaluateConfig:
    """The paper's protocols on a ViT-B: linear probe, fine-tuning for 100 epochs (Table 9), tokens as input (Table 7).

    `mapet evaluate vit_base images.path=/data/imagenet settings.processes=8` -- as for `vit_tiny`.
    """
    return with_paper_recipe(evaluate_on_imagenet(), "vit_base")


def evaluate_on_imagenet() -> EvaluateConfig:
    return EvaluateConfig(**sections_of(pretrain_on_imagenet()))
