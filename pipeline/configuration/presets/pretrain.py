"""Configurations of `mapet pretrain`: those of the tokens, and a backbone that learns to predict them."""

from models.objectives import OBJECTIVES
from models.vit.options import BackboneOptions
from pipeline.configuration.config import (
    ObjectiveSections,
    PretrainConfig,
)
from pipeline.configuration.presets.kclip_build import demo, folder, imagenet
from pipeline.configuration.presets.sections import sections_of
from pipeline.configuration.variations import with_paper_recipe
from pipeline.training.options import TrainingOptions
from pipeline.training.pretraining_options import PretrainOptions


def pretrain_demo() -> PretrainConfig:
    """MaPeT on the demo's tokens: a ViT of 64 x 4 on 16 patches, 6 epochs.

    `mapet pretrain demo`, or `mapet pretrain demo pretrain.objective=pim` -- about a minute on 2 CPU cores once the
    tokens are there. Expect a token accuracy of 38 %, against 2 % for guessing the most frequent token.
    """
    return PretrainConfig(
        **sections_of(demo()),
        # So short a training needs every step: nothing that slows it down to help longer ones.
        backbone=BackboneOptions(name="vit_demo", image_size=64, drop_path_rate=0.0, layer_scale=0.0),
        pretrain=PretrainOptions(colour_jitter=0.0),
        # Three quarters of the patches are predicted by MaPeT and PIM, 38 % by MIM and BEiT: as of the paper's 196.
        objectives=_objectives(cutting_point=5, masked=6, cae_masked=8, min_block=2),
        training=TrainingOptions(
            epochs=6, batch_size=32, peak_learning_rate=4e-3, warmup_epochs=1, precision="fp32", report_steps=40
        ),
    )


def vit_tiny() -> PretrainConfig:
    """The paper's ViT-T on ImageNet k-CLIP tokens: 300 epochs of 625 steps of 2048 images (Table 8).

    `mapet pretrain vit_tiny images.path=/data/imagenet settings.processes=8` -- any of the five objectives with
    `pretrain.objective=`; a step of MaPeT costs about 2.2 of MIM. The paper reports 75.5 % top-1 after fine-tuning,
    62.5 % with a linear probe.
    """
    return with_paper_recipe(pretrain_on_imagenet(), "vit_tiny")


def vit_small() -> PretrainConfig:
    """The paper's ViT-S on ImageNet k-CLIP tokens: 300 epochs of 625 steps of 2048 images (Table 8).

    `mapet pretrain vit_small images.path=/data/imagenet settings.processes=8` -- the paper reports 82.1 % top-1 after
    fine-tuning, 71.6 % with a linear probe.
    """
    return with_paper_recipe(pretrain_on_imagenet(), "vit_small")


def vit_base() -> PretrainConfig:
    """The paper's ViT-B on ImageNet k-CLIP tokens: 300 epochs of 625 steps of 2048 images (Table 8).

    `mapet pretrain vit_base images.path=/data/imagenet settings.processes=8` -- about a day on the paper's 64 V100.
    175 MiB of GPU memory an image: `settings.micro_batch_size=96` fits 24 GB. The paper reports 83.6 % top-1
    after fine-tuning, 73.5 % with a linear probe.
    """
    return with_paper_recipe(pretrain_on_imagenet(), "vit_base")


def pretrain_folder() -> PretrainConfig:
    """Your own images: MaPeT with a ViT-S on 49 patches of 32 px, 100 epochs of 256 images a step.

    `mapet pretrain folder images.path=~/photos` -- on the tokens of `mapet kclip-build folder`, which it builds if need
    be. One GPU; at least 256 images (lower `training.batch_size` for fewer). For some ten thousand images raise
    `training.epochs`: what counts is the number of steps.
    """
    return PretrainConfig(
        **sections_of(folder()),
        backbone=BackboneOptions(name="vit_small", patch_size=32),
        objectives=_objectives(cutting_point=13, masked=19, cae_masked=24, min_block=4),
        training=TrainingOptions(epochs=100, batch_size=256, peak_learning_rate=5e-4),
    )


def pretrain_on_imagenet() -> PretrainConfig:
    return PretrainConfig(**sections_of(imagenet()), objectives=_objectives(cutting_point=60))


def _objectives(
    *, cutting_point: int, masked: int = 75, cae_masked: int = 98, min_block: int = 16
) -> ObjectiveSections:
    """Return the section of each objective, with those of the numbers that it has an option for; CAE masks
    `cae_masked`."""
    numbers = {"cutting_point": cutting_point, "masked": masked, "min_block": min_block}
    sections = {
        name: {option: number for option, number in numbers.items() if option in known.options_class.model_fields}
        for name, known in OBJECTIVES.items()
    }
    sections["cae"]["masked"] = cae_masked
    return ObjectiveSections.model_validate(sections)
