"""From images to a pre-trained backbone: the tokens (built, found, or given), then `pretrain`, then a report."""

from dataclasses import replace
from pathlib import Path

from pipeline.chains.graph import Graph, Node, stages_of
from pipeline.chains.tokens import Tokenized, indexed, tokenized
from pipeline.configuration.config import PretrainConfig
from pipeline.data.decoding_options import DecodingOptions
from pipeline.data.stored_squares import KeptSquares
from pipeline.engine.stage import Source
from pipeline.stages.pretrain import Pretrain
from pipeline.stages.report.report import Report
from pipeline.stages.store_squares import StoreSquares
from pipeline.stages.tokenize_images import GivenTokens

_ANY_NUMBER = 2**31 - 1  # of bad images: tokens that are given say which are good


def pretrain_on_tokens(config: PretrainConfig, *, stored_squares: bool = False) -> Graph:
    """Return the graph of one pre-training, of the tokens that it learns, and of a report on both; and of the squares
    that it sees, if they are to be kept."""
    built = tokens_of(config, stored_squares=stored_squares)
    trained = pretrained(config, built)
    report = Report(
        built.images, built.tokens, config.decoding, made_from=stages_of(built.nodes), compared=(trained.stage,)
    )
    return Graph.of((*built.nodes, *squares_of(built), trained, Node(report, config)))


def tokens_of(config: PretrainConfig, *, variant: str = "", stored_squares: bool = False) -> Tokenized:
    """Return the tokens that `pretrain.tokens` names, or those that the build makes; with the squares of a
    pre-training, if they are to be kept."""
    kept = _seen(config) if stored_squares else None
    if not config.pretrain.tokens:
        built = tokenized(config, variant=variant, squares=kept)
    else:
        nodes, images = indexed(config)
        built = Tokenized(nodes, images, GivenTokens(Path(config.pretrain.tokens)))
    if kept is None:
        return built
    return replace(built, squares=Node(StoreSquares(kept, built.images, after=(built.tokens,)), config))


def squares_of(built: Tokenized) -> tuple[Node, ...]:
    """Return the node that keeps the images' squares, if there is one."""
    return () if built.squares is None else (built.squares,)


def seen_squares(config: PretrainConfig, built: Tokenized) -> tuple[Source, ...]:
    """Return the stage that keeps the squares which a pre-training sees, if there is one: none has those of another
    size or decoding."""
    stages = (node.stage for node in squares_of(built))
    return tuple(stage for stage in stages if isinstance(stage, StoreSquares) and stage.squares == _seen(config))


def _seen(config: PretrainConfig) -> KeptSquares:
    policy = DecodingOptions(max_bad_images=_ANY_NUMBER) if config.pretrain.tokens else config.decoding
    return KeptSquares(config.backbone.image_size, policy.model_copy(update={"preset": config.pretrain.decoding}))


def pretrained(config: PretrainConfig, built: Tokenized, *, variant: str = "") -> Node:
    """Return the node that pre-trains with `config.pretrain.objective`, which is its variant unless one is given."""
    stage = Pretrain(
        config.pretrain,
        objective=getattr(config.objectives, config.pretrain.objective),
        backbone=config.backbone,
        training=config.training,
        images=built.images,
        tokens=built.tokens,
        squares=seen_squares(config, built),
    )
    return Node(stage, config, variant or config.pretrain.objective)
