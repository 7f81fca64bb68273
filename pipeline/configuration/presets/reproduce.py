"""Configurations of `mapet reproduce`: a grid of pre-trainings and evaluations, such as each of the paper's tables."""

from typing import Any

from models.objectives import OBJECTIVES
from pipeline.configuration.config import (
    GridOptions,
    ReproduceConfig,
)
from pipeline.configuration.presets.evaluate import evaluate_demo, evaluate_on_imagenet
from pipeline.configuration.presets.sections import sections_of
from pipeline.stages.evaluate.protocols import EvaluateOptions


def reproduce_demo() -> ReproduceConfig:
    """The whole comparison at small scale: MIM, PIM and MaPeT on the demo's tokens and a backbone from scratch, each
    with k-NN, linear probe, fine-tuning and segmentation; k-CLIP's tokens against those of a VQ-KD that is trained on
    the spot, of raw patches, and of a random encoder.

    `mapet reproduce demo` -- about ten minutes on 2 CPU cores, tokens included; BEiT and CAE too with `full=true`.
    """
    return ReproduceConfig(
        **sections_of(evaluate_demo()),
        grid=GridOptions(title="demo", tokens_only=("vqkd", "kmeans", "pixels", "random")),
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
        **sections_of(evaluate_on_imagenet()) | {"evaluate": EvaluateOptions.model_validate({"protocols": protocols})},
        # The paper prints nothing else of a backbone from scratch.
        grid=GridOptions.model_validate(
            {"title": title, "backbones": _BACKBONES, "scratch_protocols": ("fine_tune",), **grid}
        ),
    )
