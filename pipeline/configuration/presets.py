"""Whole configurations, by flow and name. Each docstring says how to run it, on what, how long it takes and what comes
out."""

from collections.abc import Callable, Mapping
from typing import Any

from models.clip.options import ClipOptions
from models.encoders.options import RawPatchOptions
from models.heads.segmenter_options import SegmenterOptions
from models.kmeans.options import CodebookOptions
from models.objectives import OBJECTIVES
from models.vit.options import BackboneOptions
from models.vqkd.options import VQKDCodebookOptions, VQKDNetworkOptions, VQKDOptions
from pipeline.configuration.config import (
    EvaluateConfig,
    GridOptions,
    KClipBuildConfig,
    ObjectiveSections,
    PretrainConfig,
    ReproduceConfig,
)
from pipeline.configuration.variations import with_paper_recipe
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.segmentation_options import SegmentationTransformOptions
from pipeline.data.source_options import ImageSourceOptions
from pipeline.encoding.feature_options import FeatureOptions
from pipeline.engine.errors import PipelineError
from pipeline.engine.words import did_you_mean
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
from pipeline.training.pretraining_options import PretrainOptions
from pipeline.training.vqkd_options import FIT, FitVQKDOptions


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
        pixels=RawPatchOptions(image_size=64, patch_size=16),
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


def vqkd() -> KClipBuildConfig:
    """Your own images or ImageNet, tokens of BEiT v2's published VQ-KD: 224 px, 196 patches, 8192 codes.

    `mapet kclip-build vqkd images.path=/data/imagenet` -- nothing is fitted, so it is one pass over the images. Needs
    the weights once (a download of 500 MB, or `vqkd.checkpoint=/path/to/the.pth`). Any GPU; 2 to 5 images/s on a CPU
    core.
    """
    return KClipBuildConfig(
        images=ImageSourceOptions(kind="folder", images_per_unit=4096), tokenizer="vqkd", vqkd=VQKDOptions()
    )


def fit_vqkd() -> KClipBuildConfig:
    """A VQ-KD of your own: BEiT v2's recipe on your images, taught by OpenAI's CLIP ViT-B/16, then its tokens.

    `mapet kclip-build fit_vqkd images.path=~/photos settings.processes=8` -- 100 epochs of a ViT-B that is trained with
    a decoder, about a third of a pre-training. `fit_vqkd.network.vocabulary=1024` for fewer than a million images:
    codes that nobody needs are revived, but say little.
    """
    return KClipBuildConfig(
        images=ImageSourceOptions(kind="folder", images_per_unit=4096),
        tokenizer="vqkd",
        vqkd=VQKDOptions(checkpoint=FIT),
    )


def dalle() -> KClipBuildConfig:
    """Your own images or ImageNet, tokens of DALL-E's autoencoder as BEiT reads them: 112 px, 196 patches, 8192 codes.

    `mapet kclip-build dalle images.path=/data/imagenet dalle.checkpoint=encoder.safetensors` -- the file is what `mapet
    convert-dalle encoder.pkl` makes of the published one.
    """
    return KClipBuildConfig(images=ImageSourceOptions(kind="folder", images_per_unit=4096), tokenizer="dalle")


def pretrain_demo() -> PretrainConfig:
    """MaPeT on the demo's tokens: a ViT of 64 x 4 on 16 patches, 6 epochs.

    `mapet pretrain demo`, or `mapet pretrain demo pretrain.objective=pim` -- about a minute on 2 CPU cores once the
    tokens are there. Expect a token accuracy of 38 %, against 2 % for guessing the most frequent token.
    """
    return PretrainConfig(
        **_sections(demo()),
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
    return with_paper_recipe(_pretrain_on_imagenet(), "vit_tiny")


def vit_small() -> PretrainConfig:
    """The paper's ViT-S on ImageNet k-CLIP tokens: 300 epochs of 625 steps of 2048 images (Table 8).

    `mapet pretrain vit_small images.path=/data/imagenet settings.processes=8` -- the paper reports 82.1 % top-1 after
    fine-tuning, 71.6 % with a linear probe.
    """
    return with_paper_recipe(_pretrain_on_imagenet(), "vit_small")


def vit_base() -> PretrainConfig:
    """The paper's ViT-B on ImageNet k-CLIP tokens: 300 epochs of 625 steps of 2048 images (Table 8).

    `mapet pretrain vit_base images.path=/data/imagenet settings.processes=8` -- about a day on the paper's 64 V100.
    175 MiB of GPU memory an image: `settings.micro_batch_size=96` fits 24 GB. The paper reports 83.6 % top-1
    after fine-tuning, 73.5 % with a linear probe.
    """
    return with_paper_recipe(_pretrain_on_imagenet(), "vit_base")


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


def _pretrain_on_imagenet() -> PretrainConfig:
    return PretrainConfig(**_sections(imagenet()), objectives=_objectives(cutting_point=60))


def _objectives(
    *, cutting_point: int, masked: int = 75, cae_masked: int = 98, min_block: int = 16
) -> ObjectiveSections:
    """Each objective takes what it has; half of the patches are CAE's, and its own."""
    numbers = {"cutting_point": cutting_point, "masked": masked, "min_block": min_block}
    sections = {
        name: {option: number for option, number in numbers.items() if option in known.options_class.model_fields}
        for name, known in OBJECTIVES.items()
    }
    sections["cae"]["masked"] = cae_masked
    return ObjectiveSections.model_validate(sections)


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
        **_sections(pretrain_demo()),
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
        **_sections(pretrain_folder()),
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
    return with_paper_recipe(_evaluate_on_imagenet(), "vit_tiny")


def evaluate_vit_small() -> EvaluateConfig:
    """The paper's protocols on a ViT-S: linear probe, fine-tuning for 200 epochs (Table 9), tokens as input (Table 7).

    `mapet evaluate vit_small images.path=/data/imagenet settings.processes=8` -- as for `vit_tiny`.
    """
    return with_paper_recipe(_evaluate_on_imagenet(), "vit_small")


def evaluate_vit_base() -> EvaluateConfig:
    """The paper's protocols on a ViT-B: linear probe, fine-tuning for 100 epochs (Table 9), tokens as input (Table 7).

    `mapet evaluate vit_base images.path=/data/imagenet settings.processes=8` -- as for `vit_tiny`.
    """
    return with_paper_recipe(_evaluate_on_imagenet(), "vit_base")


def _evaluate_on_imagenet() -> EvaluateConfig:
    return EvaluateConfig(**_sections(_pretrain_on_imagenet()))


def reproduce_demo() -> ReproduceConfig:
    """The whole comparison at small scale: MIM, PIM and MaPeT on the demo's tokens and a backbone from scratch, each
    with k-NN, linear probe, fine-tuning and segmentation; k-CLIP's tokens against those of a VQ-KD that is trained on
    the spot, of raw patches, and of a random encoder.

    `mapet reproduce demo` -- about ten minutes on 2 CPU cores, tokens included; BEiT and CAE too with `full=true`.
    """
    return ReproduceConfig(
        **_sections(evaluate_demo()), grid=GridOptions(title="demo", tokens_only=("vqkd", "pixels", "random"))
    )


_BACKBONES = ("vit_tiny", "vit_small", "vit_base")
_BOTH = ("kclip", "vqkd")  # the paper's tokenizers


def table1() -> ReproduceConfig:
    """Table 1: MIM, PIM and MaPeT on k-CLIP and VQ-KD tokens with ViT-T, S and B; fine-tuning and linear probe.

    `mapet reproduce table1 images.path=/data/imagenet settings.processes=8` -- eighteen pre-trainings, each fine-tuned
    and probed; half of them with `grid.tokenizers=[kclip]`. `mapet plan reproduce table1 ...` first says what that
    costs.
    """
    return _paper_table("table1", ("fine_tune", "linear_probe"), tokenizers=_BOTH, scratch=False)


def table2() -> ReproduceConfig:
    """Table 2: training from scratch, and CAE, BEiT and MaPeT on k-CLIP and VQ-KD tokens, with ViT-T, S and B;
    fine-tuning and linear probe; from scratch by DeiT's recipe (the paper gives none) and without a probe, as there.

    `mapet reproduce table2 images.path=/data/imagenet settings.processes=8` -- shares MaPeT's runs with `table1`.
    """
    return _paper_table("table2", ("fine_tune", "linear_probe"), tokenizers=_BOTH, objectives=("cae", "beit", "mapet"))


def table3() -> ReproduceConfig:
    """Table 3, the paper's own rows: MaPeT on k-CLIP and VQ-KD tokens with ViT-S and B, fine-tuned.

    `mapet reproduce table3 images.path=/data/imagenet settings.processes=8` -- shares all runs with `table1`.
    """
    return _paper_table(
        "table3",
        ("fine_tune",),
        tokenizers=_BOTH,
        objectives=("mapet",),
        backbones=("vit_small", "vit_base"),
        scratch=False,
    )


def table4() -> ReproduceConfig:
    """Table 4: UperNet on ADE20K for all objectives on VQ-KD tokens, and all backbones.

    `mapet reproduce table4 images.path=/data/imagenet segmentation.path=/data/ADEChallengeData2016` -- for k-CLIP
    tokens, which the paper leaves out, add `grid.tokenizers=[kclip]`.
    """
    return _paper_table("table4", ("segmentation",), tokenizers=("vqkd",), objectives=tuple(OBJECTIVES), scratch=False)


def table5() -> ReproduceConfig:
    """Table 5: linear probes on Stanford Cars, Food-101 and FGVC-Aircraft, for CAE, BEiT and MaPeT on VQ-KD tokens.

    `mapet reproduce table5 images.path=/data/imagenet transfer.food101=/data/food-101 transfer.stanford_cars=...
    transfer.fgvc_aircraft=...` -- data sets without a path are left out. The paper does not say which backbone it used:
    ViT-B here.
    """
    return _paper_table(
        "table5",
        ("transfer",),
        tokenizers=("vqkd",),
        objectives=("cae", "beit", "mapet"),
        backbones=("vit_base",),
        scratch=False,
    )


def table6() -> ReproduceConfig:
    """Table 6: MaPeT on VQ-KD tokens with ViT-B and cutting points 30 to 60 (85 to 70 % of the patches predicted),
    fine-tuned.

    `mapet reproduce table6 images.path=/data/imagenet settings.processes=8` -- other points with
    `grid.cutting_points=[50,98]`.
    """
    return _paper_table(
        "table6",
        ("fine_tune",),
        tokenizers=("vqkd",),
        objectives=("mapet",),
        backbones=("vit_base",),
        cutting_points=(30, 40, 50, 60, 98),
        scratch=False,
    )


def table7() -> ReproduceConfig:
    """Table 7: an MLP and a ViT-T that see only tokens, of k-CLIP, VQ-KD and DALL-E, and beside them of a random
    encoder; CLIP's zero-shot accuracy. Nothing is pre-trained.

    `mapet reproduce table7 images.path=/data/imagenet dalle.checkpoint=encoder.safetensors` -- without DALL-E's file:
    `grid.tokens_only=[vqkd,random]`.
    """
    protocols = ("tokens_as_input", "tokens_as_input_vit", "zero_shot")
    tokens_only = ("vqkd", "dalle", "random")
    return _paper_table("table7", protocols, objectives=(), backbones=(), tokens_only=tokens_only, scratch=False)


def paper() -> ReproduceConfig:
    """Everything of Tables 1-5 and 7: five objectives on k-CLIP and VQ-KD tokens and training from scratch, three
    backbones, all protocols; DALL-E's tokens as input.

    `mapet reproduce paper images.path=/data/imagenet segmentation.path=... transfer.food101=... settings.processes=8`
    -- weeks on one node; `mapet plan reproduce paper ...` counts them. Cells are shared with the other tables, and what
    fails is said at the end. Without DALL-E's file (`dalle.checkpoint=`) add `grid.tokens_only=[]`; of the protocols
    whose data are not there, name the others in `evaluate.protocols`. Table 6 is `table6`.
    """
    protocols = (
        "fine_tune", "linear_probe", "frozen_features", "segmentation", "transfer",
        "tokens_as_input", "tokens_as_input_vit", "zero_shot",
    )  # fmt: skip
    return _paper_table("paper", protocols, tokenizers=_BOTH, tokens_only=("dalle",), objectives=tuple(OBJECTIVES))


def _paper_table(title: str, protocols: tuple[str, ...], **grid: Any) -> ReproduceConfig:
    return ReproduceConfig(
        **_sections(_evaluate_on_imagenet()) | {"evaluate": EvaluateOptions.model_validate({"protocols": protocols})},
        # The paper prints nothing else of a backbone from scratch.
        grid=GridOptions.model_validate(
            {"title": title, "backbones": _BACKBONES, "scratch_protocols": ("fine_tune",), **grid}
        ),
    )


def _sections(config: KClipBuildConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in type(config).model_fields}


Presets = Mapping[str, Callable[[], KClipBuildConfig]]
PRESETS: Mapping[str, Presets] = {
    "kclip-build": {
        "demo": demo,
        "imagenet": imagenet,
        "folder": folder,
        "vqkd": vqkd,
        "fit_vqkd": fit_vqkd,
        "dalle": dalle,
    },
    "pretrain": {
        "demo": pretrain_demo,
        "folder": pretrain_folder,
        "vit_tiny": vit_tiny,
        "vit_small": vit_small,
        "vit_base": vit_base,
    },
    "evaluate": {
        "demo": evaluate_demo,
        "folder": evaluate_folder,
        "vit_tiny": evaluate_vit_tiny,
        "vit_small": evaluate_vit_small,
        "vit_base": evaluate_vit_base,
    },
    "reproduce": {
        "demo": reproduce_demo,
        "paper": paper,
        "table1": table1,
        "table2": table2,
        "table3": table3,
        "table4": table4,
        "table5": table5,
        "table6": table6,
        "table7": table7,
    },
}


def preset(flow: str, name: str) -> KClipBuildConfig:
    """The configuration called `name` of a flow. Raises PipelineError for an unknown name."""
    presets = PRESETS[flow]
    if name not in presets:
        raise PipelineError(
            f"{flow} has no preset {name!r}{did_you_mean(name, presets)}; presets: {', '.join(presets)}"
        )
    return presets[name]()
