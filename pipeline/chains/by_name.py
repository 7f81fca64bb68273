"""The chains of stages by name, as commands and Prefect flows call them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.chains.evaluate import evaluate_pretraining
from pipeline.chains.graph import Graph
from pipeline.chains.kclip_build import kclip_build
from pipeline.chains.pretrain import pretrain_on_tokens
from pipeline.chains.reproduce import reproduce
from pipeline.engine.settings import Settings
from pipeline.stages.evaluate.evaluate import Evaluate
from pipeline.stages.pretrain import Pretrain
from pipeline.stages.report.report import Report
from pipeline.stages.tokenize_images import TokenizeImages


@dataclass(frozen=True)
class Chain:
    """The function that makes its graph, and the stage that users run it for."""

    of: Callable[..., Graph]
    product: str

    def graph(self, config: Any, settings: Settings | None = None) -> Graph:
        """Return the graph of a configuration. `settings`: of the machine; None: as they are where nobody set any."""
        return self.of(config, stored_squares=settings is not None and settings.stored_squares)


CHAINS: Mapping[str, Chain] = {
    "kclip-build": Chain(kclip_build, TokenizeImages.NAME),
    "pretrain": Chain(pretrain_on_tokens, Pretrain.NAME),
    "evaluate": Chain(evaluate_pretraining, Evaluate.NAME),
    "reproduce": Chain(reproduce, Report.NAME),
}
