"""The chains of stages by name, as commands and Prefect flows call them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.wiring import evaluate, kclip_build, pretrain, reproduce
from pipeline.wiring.base import ExpectedCall, FlowResult


@dataclass(frozen=True)
class Wiring:
    """`run(config, workspace, run_stage)`, the calls that it will make, and the stage that users run it for."""

    run: Callable[..., FlowResult]
    expected_calls: Callable[[Any], tuple[ExpectedCall, ...]]
    product: str


WIRINGS: Mapping[str, Wiring] = {
    "kclip-build": Wiring(kclip_build.kclip_build, kclip_build.expected_calls, "tokenize_images"),
    "pretrain": Wiring(pretrain.pretrain_on_tokens, pretrain.expected_calls, "pretrain"),
    "evaluate": Wiring(evaluate.evaluate_pretraining, evaluate.expected_calls, "evaluate"),
    "reproduce": Wiring(reproduce.reproduce, reproduce.expected_calls, "report"),
}
