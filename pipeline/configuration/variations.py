"""The same configuration with another tokenizer, backbone, cutting point or seed."""

from typing import TypeVar

from models.objectives import OBJECTIVES
from models.options import Options
from pipeline.configuration.config import EvaluateConfig, KClipBuildConfig, PretrainConfig
from pipeline.paper.recipes import PAPER_RECIPES
from pipeline.stages.evaluate.protocols import PROTOCOLS

_Build = TypeVar("_Build", bound=KClipBuildConfig)
_Pretrain = TypeVar("_Pretrain", bound=PretrainConfig)


def with_tokenizer(config: _Build, tokenizer: str) -> _Build:
    """Return the same with the tokens of another tokenizer; "" leaves it as it is, "random" is k-CLIP with random
    weights."""
    if not tokenizer:
        return config
    if tokenizer != "random":
        return config.model_copy(update={"tokenizer": tokenizer})
    return config.model_copy(update={"tokenizer": "kclip", "clip": config.clip.model_copy(update={"pretrained": ""})})


def with_seed(config: EvaluateConfig, seed: int) -> EvaluateConfig:
    """Return the same with this seed in every evaluation."""
    seeded: dict[str, Options] = {
        protocol: getattr(config, protocol).model_copy(update={"seed": seed}) for protocol in PROTOCOLS
    }
    return config.model_copy(update=seeded)


def with_paper_recipe(config: _Pretrain, backbone: str) -> _Pretrain:
    """Return the same for another of the paper's backbones, with what the paper sets differently for it."""
    recipe = PAPER_RECIPES[backbone]
    chosen = config.model_copy(update={"backbone": config.backbone.model_copy(update={"name": backbone})})
    for objective in OBJECTIVES:
        if has_cutting_point(objective):
            chosen = with_cutting_point(chosen, objective, recipe.cutting_point)
    if not isinstance(chosen, EvaluateConfig):
        return chosen
    training = chosen.fine_tune.training.model_copy(
        update={"epochs": recipe.fine_tune_epochs, "peak_learning_rate": recipe.fine_tune_learning_rate}
    )
    fine_tune = chosen.fine_tune.model_copy(update={"training": training, "layer_decay": recipe.layer_decay})
    return chosen.model_copy(update={"fine_tune": fine_tune})


def from_scratch(config: EvaluateConfig) -> EvaluateConfig:
    """Return the same for a backbone of random weights: fine-tuned as `scratch` says, and segmented without layer
    decay, which spares what was learned before."""
    segmentation = config.segmentation.model_copy(update={"layer_decay": 1.0})
    return config.model_copy(update={"fine_tune": config.scratch, "segmentation": segmentation})


def has_cutting_point(objective: str) -> bool:
    """Return whether an objective has a cutting point, as PIM and MaPeT do."""
    return "cutting_point" in OBJECTIVES[objective].options_class.model_fields


def with_cutting_point(config: _Pretrain, objective: str, cutting_point: int) -> _Pretrain:
    """Return the same with another cutting point of an objective that has one."""
    options = getattr(config.objectives, objective).model_copy(update={"cutting_point": cutting_point})
    return config.model_copy(update={"objectives": config.objectives.model_copy(update={objective: options})})
