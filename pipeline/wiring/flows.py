"""The chains of stages by name, as commands and Prefect flows call them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.wiring import evaluate, kclip_build, pretrain, reproduce
from pipeline.wiring.base import FlowResult


@dataclass(frozen=True)
class Wiring:
    """`run(config, workspace, run_stage)`, the names of the calls that it will make in order, and the stage that users
    run it for."""

    run: Callable[..., FlowResult]
    stage_names: Callable[[Any], tuple[str, ...]]
    product: str


WIRINGS: Mapping[str, Wiring] = {
    "kclip-build": Wiring(kclip_build.kclip_build, kclip_build.stage_names, "tokenize_images"),
    "pretrain": Wiring(pretrain.pretrain_on_tokens, pretrain.stage_names, "pretrain"),
    "evaluate": Wiring(evaluate.evaluate_pretraining, evaluate.stage_names, "evaluate"),
    "reproduce": Wiring(reproduce.reproduce, reproduce.stage_names, "report"),
}
