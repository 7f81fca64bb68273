"""Whole configurations, by flow and name. Each docstring says how to run it, on what, how long it takes and what comes
out."""

from collections.abc import Callable, Mapping

from pipeline.configuration.config import KClipBuildConfig
from pipeline.configuration.presets.evaluate import (
    evaluate_demo,
    evaluate_folder,
    evaluate_vit_base,
    evaluate_vit_small,
    evaluate_vit_tiny,
)
from pipeline.configuration.presets.kclip_build import dalle, demo, fit_vqkd, folder, imagenet, lite, vqkd
from pipeline.configuration.presets.pretrain import pretrain_demo, pretrain_folder, vit_base, vit_small, vit_tiny
from pipeline.configuration.presets.reproduce import (
    paper,
    reproduce_demo,
    table1,
    table2,
    table3,
    table4,
    table5,
    table6,
    table7,
)
from pipeline.engine.errors import PipelineError
from pipeline.engine.words import did_you_mean

Presets = Mapping[str, Callable[[], KClipBuildConfig]]
PRESETS: Mapping[str, Presets] = {
    "kclip-build": {
        "demo": demo,
        "imagenet": imagenet,
        "folder": folder,
        "lite": lite,
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
    """Return the configuration called `name` of a flow. Raises PipelineError for an unknown name."""
    presets = PRESETS[flow]
    if name not in presets:
        raise PipelineError(
            f"{flow} has no preset {name!r}{did_you_mean(name, presets)}; presets: {', '.join(presets)}"
        )
    return presets[name]()
