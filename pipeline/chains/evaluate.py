"""From images to scores: a pre-training (built, or found), then every protocol on it.

A protocol that fails does not keep the others from running; what failed is said at the end.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.chains.graph import Graph, Node
from pipeline.chains.pretrain import pretrained, seen_squares, squares_of, tokens_of
from pipeline.chains.tokens import Tokenized
from pipeline.configuration.config import EvaluateConfig
from pipeline.data.inputs import ImageLocation, Images
from pipeline.engine.stage import Source, Stage
from pipeline.stages.demo.make_demo_segmentation import MakeDemoSegmentation
from pipeline.stages.evaluate.evaluate import Evaluate
from pipeline.stages.evaluate.protocols import KEPT_BY, PROTOCOLS
from pipeline.stages.index_images import IndexImages


def evaluate_pretraining(config: EvaluateConfig, *, stored_squares: bool = False) -> Graph:
    """Return the graph that judges one pre-training, its tokens and the CLIP behind them by every protocol that was
    asked for; with the squares that the pre-training sees, if they are to be kept."""
    built = tokens_of(config, stored_squares=stored_squares)
    trained = pretrained(config, built)
    return Graph.of(
        (
            *built.nodes,
            *squares_of(built),
            trained,
            *of_clip(config, built),
            *of_tokens(config, built),
            *of_backbone(config, built, trained.stage, subject=config.pretrain.objective),
        )
    )


def of_backbone(config: EvaluateConfig, built: Tokenized, trained: Stage | None, *, subject: str) -> Iterator[Node]:
    """Yield a node for every protocol of backbones; without a pre-training the backbone starts from random weights."""
    for protocol in _protocols(config, "backbone"):
        if protocol == "transfer":
            yield from _transfers(config, trained, subject=subject)
            continue
        part, drawn = f"{protocol} of {subject}", None
        if protocol == "segmentation" and _draws_segmentation(config):
            drawn = MakeDemoSegmentation(config.demo_segmentation, config.demo_images)
            yield Node(drawn, config, part=part)
        judged = {"images": built.images, "tokens": built.tokens, "pretrained": trained, "drawn": drawn}
        stage = _evaluate(protocol, config, **judged, squares=_judged_squares(protocol, config, built))
        yield Node(stage, config, f"{protocol}-{subject}", part)


def _judged_squares(protocol: str, config: EvaluateConfig, built: Tokenized) -> tuple[Source, ...]:
    """Return the stage that keeps the squares which a protocol would cut: all of the shorter side, resized as `exact`
    decoding does."""
    whole = getattr(getattr(config, protocol), "crop_pct", None) == 1
    return seen_squares(config, built) if whole and config.pretrain.decoding == "exact" else ()


def of_tokens(config: EvaluateConfig, built: Tokenized, *, subject: str = "") -> Iterator[Node]:
    """Yield a node for every protocol of tokens. `subject`: whose tokens, and with which seed, where a run has
    several."""
    for protocol in _protocols(config, "tokens"):
        variant = f"{protocol}-{subject}" if subject else protocol
        stage = _evaluate(protocol, config, images=built.images, tokens=built.tokens)
        yield Node(stage, config, variant, f"{variant} of the tokens")


def of_clip(config: EvaluateConfig, built: Tokenized) -> Iterator[Node]:
    """Yield a node for every protocol of the CLIP that made the tokens; nothing is trained, so there is one result for
    all seeds.

    A CLIP of random weights has made tokens, but knows no words; other tokenizers have no CLIP, and tokens that are
    given do not bring theirs.
    """
    if built.clip is None or not built.clip.options.pretrained:
        return
    for protocol in _protocols(config, "clip"):
        stage = _evaluate(protocol, config, images=built.images, tokens=built.tokens, clip=built.clip)
        yield Node(stage, config, protocol, f"{protocol} of the CLIP")


def _transfers(config: EvaluateConfig, trained: Stage | None, *, subject: str) -> Iterator[Node]:
    for data_set, source in config.transfer.sources():
        named = f"transfer_{data_set}"
        location = ImageLocation(source.model_copy(update={"identity": config.images.identity}))
        index, part = IndexImages(location), f"{named} of {subject}"
        yield Node(index, config, data_set, part)
        images = Images(index, location)
        stage = _evaluate("transfer", config, images=images, pretrained=trained, data_set=data_set)
        yield Node(stage, config, f"{named}-{subject}", part)


def _evaluate(protocol: str, config: EvaluateConfig, **judged: Any) -> Evaluate:
    keep = config.evaluate.keep_weights and protocol == KEPT_BY
    return Evaluate(protocol, getattr(config, protocol), config.backbone, keep_weights=keep, **judged)


def _protocols(config: EvaluateConfig, judges: str) -> list[str]:
    return [protocol for protocol in config.evaluate.protocols if PROTOCOLS[protocol].judges == judges]


def _draws_segmentation(config: EvaluateConfig) -> bool:
    return config.images.kind == "demo" and not config.segmentation.path


def unjudged_protocols(nodes: Sequence[Node]) -> Iterator[str]:
    """Yield a sentence for every protocol that was asked for and by which nothing would be judged."""
    asked, ran = getattr(nodes[-1].config, "evaluate", None), {node.protocol for node in nodes}
    for protocol in dict.fromkeys(asked.protocols) if asked else ():
        if protocol not in ran:
            why = _NOBODY["transfer" if protocol == "transfer" else PROTOCOLS[protocol].judges]
            yield f"evaluate.protocols names {protocol}, and nothing would be judged by it: {why}"


_NOBODY = {
    "transfer": "give a data set its path, such as transfer.folder=/data/pets, or leave it out",
    "backbone": "grid.objectives is empty and grid.scratch is false",
    "clip": "no tokenizer is kclip with weights (clip.pretrained) whose tokens are made here; leave it out",
}
