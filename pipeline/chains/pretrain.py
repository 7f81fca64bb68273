"""From images to a pre-trained backbone: the tokens (built, found, or given), then `pretrain`, then a report."""

from pathlib import Path

from pipeline.chains.graph import Graph, Node, stages_of
from pipeline.chains.tokens import Tokenized, indexed, tokenized
from pipeline.configuration.config import PretrainConfig
from pipeline.stages.pretrain import Pretrain
from pipeline.stages.report.report import Report
from pipeline.stages.tokenize_images import GivenTokens


def pretrain_on_tokens(config: PretrainConfig) -> Graph:
    """Return the graph of one pre-training, of the tokens that it learns, and of a report on both."""
    built = tokens_of(config)
    trained = pretrained(config, built)
    report = Report(
        built.images, built.tokens, config.decoding, made_from=stages_of(built.nodes), compared=(trained.stage,)
    )
    return Graph.of((*built.nodes, trained, Node(report, config)))


def tokens_of(config: PretrainConfig, *, variant: str = "") -> Tokenized:
    """Return the tokens that `pretrain.tokens` names, or those that the build makes."""
    if not config.pretrain.tokens:
        return tokenized(config, variant=variant)
    nodes, images = indexed(config)
    return Tokenized(nodes, images, GivenTokens(Path(config.pretrain.tokens)))


def pretrained(config: PretrainConfig, built: Tokenized, *, variant: str = "") -> Node:
    """Return the node that pre-trains with `config.pretrain.objective`, which is its variant unless one is given."""
    stage = Pretrain(
        config.pretrain,
        objective=getattr(config.objectives, config.pretrain.objective),
        backbone=config.backbone,
        training=config.training,
        images=built.images,
        tokens=built.tokens,
    )
    return Node(stage, config, variant or config.pretrain.objective)
