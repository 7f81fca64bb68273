"""The build: from images to tokens, then a report on them."""

from pipeline.chains.graph import Graph, Node, stages_of
from pipeline.chains.tokens import tokenized
from pipeline.configuration.config import KClipBuildConfig
from pipeline.stages.report.report import Report


def kclip_build(config: KClipBuildConfig, *, stored_squares: bool = False) -> Graph:
    """Return the graph of the tokens, and of a report on them. Nothing learns from pixels here, so none are stored."""
    built = tokenized(config)
    report = Report(built.images, built.tokens, config.decoding, made_from=stages_of(built.nodes))
    return Graph.of((*built.nodes, Node(report, config)))
