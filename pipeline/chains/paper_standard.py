"""What the stages record when they are run as the paper's presets say: by which a report decides which of our numbers
may stand beside the paper's."""

from functools import lru_cache
from typing import Any

from models.objectives import OBJECTIVES
from pipeline.configuration.config import EvaluateConfig
from pipeline.configuration.presets import evaluate_vit_base, imagenet, vqkd
from pipeline.configuration.variations import from_scratch, with_paper_recipe
from pipeline.engine.fingerprint import defining_options
from pipeline.paper.recipes import PAPER_RECIPES
from pipeline.stages.evaluate.protocols import PROTOCOLS
from pipeline.stages.pretrain import pretraining_definition
from pipeline.stages.records import CodebookRecord, FeaturesRecord, TokensRecord
from pipeline.stages.report.departures import Standard, evaluation_key, pretraining_key, tokens_key

# The networks as `pipeline.encoding.networks.network_definition` tells of them, which would have to load them.
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
RN50X64 = {
    "precision": "fp16", "image_size": 448, "mean": _CLIP_MEAN, "std": _CLIP_STD,
    "interpolation": "bicubic", "grid": [14, 14],
}  # fmt: skip
VQKD = {
    "precision": "fp16", "image_size": 224, "mean": [0.5] * 3, "std": [0.5] * 3,
    "interpolation": "bicubic", "grid": [14, 14],
}  # fmt: skip
DALLE = {
    "precision": "fp32", "image_size": 112, "mean": [-0.125] * 3, "std": [1.25] * 3,
    "interpolation": "lanczos", "grid": [14, 14],
}  # fmt: skip


@lru_cache(maxsize=1)
def paper_standard() -> Standard:
    """Return the recorded options of every evaluation, pre-training and stage that makes tokens, by the keys of
    `pipeline.stages.report.departures`."""
    found: dict[str, dict[str, Any]] = {}
    usual = evaluate_vit_base()
    for backbone in PAPER_RECIPES:
        config = with_paper_recipe(usual, backbone)
        for objective in OBJECTIVES:
            options = config.pretrain.model_copy(update={"objective": objective})
            sections = (getattr(config.objectives, objective), config.backbone, config.training)
            found[pretraining_key(objective, backbone)] = pretraining_definition(options, *sections)
        for protocol, known in PROTOCOLS.items():
            if known.judges == "backbone":
                found[evaluation_key(protocol, backbone)] = _of_backbone(config, protocol)
                scratch = evaluation_key(protocol, backbone, scratch=True)
                found[scratch] = _of_backbone(from_scratch(config), protocol)
    return {**found, **_of_tokens(usual), **_of_stages()}


def _of_backbone(config: EvaluateConfig, protocol: str) -> dict[str, Any]:
    return {"options": defining_options(getattr(config, protocol)), "backbone": defining_options(config.backbone)}


def _of_tokens(config: EvaluateConfig) -> dict[str, dict[str, Any]]:
    """Return what evaluations without a backbone would record."""
    found = {}
    for protocol, known in PROTOCOLS.items():
        if known.judges != "backbone":
            found[evaluation_key(protocol)] = {"options": defining_options(getattr(config, protocol))}
        if known.judges == "clip":
            seen = {name: value for name, value in RN50X64.items() if name != "grid"}
            found[evaluation_key(protocol)]["clip"] = seen
    return found


def _of_stages() -> dict[str, dict[str, Any]]:
    """Return what the stages that make tokens would record."""
    kclip = imagenet()
    decoding = {"decoding": defining_options(kclip.decoding)}
    features = {**defining_options(kclip.features), **decoding, "encoder": RN50X64}
    return {
        tokens_key("kclip", FeaturesRecord.STAGE): features,
        tokens_key("kclip", CodebookRecord.STAGE): defining_options(kclip.codebook),
        tokens_key("kclip", TokensRecord.STAGE): {**decoding, "encoder": RN50X64, "network": "RN50x64"},
        tokens_key("vqkd", TokensRecord.STAGE): {
            **decoding, "tokenizer": "vqkd", "encoder": VQKD, "network": vqkd().vqkd.checkpoint,
        },
        tokens_key("dalle", TokensRecord.STAGE): {**decoding, "tokenizer": "dalle", "encoder": DALLE, "network": ""},
    }  # fmt: skip
