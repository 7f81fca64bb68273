"""How much a stage will do, part by part, and which artifacts were made by the same work.

The parts are those that the stages themselves note (`pipeline/engine/parts.py`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from models.encoders.base import PatchEncoder
from models.tokenizers.base import Tokenizer
from pipeline.chains.graph import Node
from pipeline.chains.outlines import clip_outline, encoder_outline, tokenizer_outline
from pipeline.data.image_counts import ImageCounts
from pipeline.encoding.networks import network_definition, parameter_count
from pipeline.engine.fingerprint import defining_options
from pipeline.stages.demo.make_demo_images import MakeDemoImages
from pipeline.stages.demo.make_demo_segmentation import MakeDemoSegmentation
from pipeline.stages.demo.train_demo_clip import TrainDemoClip
from pipeline.stages.evaluate.evaluate import Evaluate
from pipeline.stages.evaluate.protocols import PROTOCOLS
from pipeline.stages.evaluate.segmented_images import segmentation_splits
from pipeline.stages.extract_features import ExtractFeatures
from pipeline.stages.fit_codebook import FitCodebook, distances_of, expected_iterations
from pipeline.stages.fit_vqkd import FitVQKD
from pipeline.stages.pretrain import Pretrain
from pipeline.stages.recipe_views import (
    CodebookRecipe,
    DemoImagesRecipe,
    DemoSegmentationRecipe,
    EncodingRecipe,
    EvaluateRecipe,
)
from pipeline.stages.records import CodebookRecord, EvaluateRecord, FeaturesRecord, TokensRecord
from pipeline.stages.store_squares import StoreSquares
from pipeline.stages.tokenize_images import TokenizeImages
from pipeline.training.options import TrainingOptions
from pipeline.training.vqkd_options import COUNTED_IMAGES
from storage.artifact import Artifact

# Images per second of an RTX 4090, channels-last, mixed precision: timm's published inference results.
_PUBLISHED_RATES = {"RN50x64": 164.0, "RN50x16": 441.0}


@dataclass(frozen=True)
class Workload:
    """What a stage will do.

    Attributes:
        parts: how much of each; empty where nothing is known that its time grows with.
        is_like: whether the artifact was made by the same work per image.
        images: that it takes in all, each as often as it is taken; None where it works on no images.
        disk: bytes that it leaves, where these are many.
        trains: whether weights are learned.
        published_rate: images per second, where nothing was measured here.
    """

    parts: Mapping[str, int]
    is_like: Callable[[Artifact], bool] = lambda _: True
    images: int | None = None
    disk: int = 0
    trains: bool = False
    published_rate: float | None = None


def workload_of(node: Node, counts: ImageCounts) -> Workload:
    """Estimate the work of one node, on a data set with so many images.

    Raises:
        ModelError: there is no such network.
        PipelineError: images of its own are not there.
    """
    return _STAGES[node.kind](node, counts) if node.kind in _STAGES else Workload({})


def sampled_vectors(config: Any, counts: ImageCounts, encoder: PatchEncoder) -> int:
    """Return how many features k-means will see, of a data set without bad images."""
    patches = _images_sampled(config, counts) * math.prod(encoder.grid)
    return max(1, round(config.features.sample_fraction * patches))


def _images_sampled(config: Any, counts: ImageCounts) -> int:
    return sum(counts.images.get(split, 0) for split in dict.fromkeys(config.features.splits))


def _drawn(node: Node, counts: ImageCounts) -> Workload:
    side = node.config.demo_images.image_size
    return Workload({"drawing": counts.total}, lambda made: DemoImagesRecipe.of(made).image_size == side, counts.total)


def _drawn_segmentation(node: Node, _: ImageCounts) -> Workload:
    wanted, side = node.config.demo_segmentation, node.config.demo_images.image_size
    images = wanted.train_images + wanted.val_images
    return Workload(
        {"drawing": images}, lambda made: DemoSegmentationRecipe.of(made).drawing.image_size == side, images
    )


def _demo_clip(node: Node, counts: ImageCounts) -> Workload:
    options = node.config.demo_clip
    images = options.epochs * (counts.labelled("train") // options.batch_size) * options.batch_size
    shape = {name: defining_options(options)[name] for name in ("image_size", "width", "vision_layers", "batch_size")}
    return Workload({"training": images}, lambda made: _has(made.recipe.options, shape), images, trains=True)


def _features(node: Node, counts: ImageCounts) -> Workload:
    config, encoder = node.config, encoder_outline(node.config)
    assert encoder is not None, "other tokenizers cluster no features"
    images = _images_sampled(config, counts)
    every = images * math.prod(encoder.grid)
    kept = every if config.features.keep == "all" else sampled_vectors(config, counts, encoder)
    return _encoding(FeaturesRecord, encoder, images, disk=kept * encoder.width * 2)


def _clustering(node: Node, counts: ImageCounts) -> Workload:
    options, encoder = node.config.codebook, encoder_outline(node.config)
    assert encoder is not None, "other tokenizers cluster no features"
    mode, width = options.mode, encoder.width
    vectors = sampled_vectors(node.config, counts, encoder)
    numbers = expected_iterations(options, vectors=vectors)
    distances = distances_of(options, vectors=vectors, iterations=numbers)
    return Workload(
        {"k-means": distances},
        lambda made: (CodebookRecipe.of(made).mode, CodebookRecord.of(made).width) == (mode, width),
    )


def _tokens(node: Node, counts: ImageCounts) -> Workload:
    network = tokenizer_outline(node.config)
    if network is None:  # a file of weights: like another pass with the same file
        where = node.config.vqkd.checkpoint
        return Workload({"encoding": counts.total}, lambda made: TokensRecord.of(made).encoder == where, counts.total)
    return _encoding(TokensRecord, network, counts.total, disk=counts.total * math.prod(network.grid) * 2)


def _squares(node: Node, counts: ImageCounts) -> Workload:
    stage = node.stage
    assert isinstance(stage, StoreSquares)
    return Workload({"encoding": counts.total}, squares_like(stage), counts.total, stage.squares.bytes(counts.total))


def squares_like(stage: StoreSquares) -> Callable[[Artifact], bool]:
    """Return what tells squares that were decoded by the same work per image."""
    wanted = stage.squares.recipe("").options
    return lambda made: _has(made.recipe.options, wanted)


def _encoding(
    record: type[FeaturesRecord | TokensRecord], network: PatchEncoder | Tokenizer, images: int, *, disk: int
) -> Workload:
    definition, size = network_definition(network), parameter_count(network)

    def is_like(made: Artifact) -> bool:
        return EncodingRecipe.of(made).encoder == definition and record.of(made).parameters == size

    published = _PUBLISHED_RATES.get(network.name.removesuffix("-quickgelu"))
    return Workload({"encoding": images}, is_like, images, disk, published_rate=published)


def _vqkd(node: Node, counts: ImageCounts) -> Workload:
    options = node.config.fit_vqkd
    train, val = (counts.images.get(split, 0) for split in (options.train_split, options.val_split))
    parts = _training(options.training, train, val)
    parts |= {"start": min(train, options.start_images), "usage": min(train, COUNTED_IMAGES)}
    network = {"network": defining_options(options.network)}
    return Workload(parts, lambda made: _has(made.recipe.options, network), parts["training"], trains=True)


def _pretraining(node: Node, counts: ImageCounts) -> Workload:
    options = node.config.pretrain
    train, val = (counts.images.get(split, 0) for split in (options.train_split, options.val_split))
    parts = _training(node.config.training, train, val)
    same = {"backbone": defining_options(node.config.backbone), "objective": options.objective}
    return Workload(parts, lambda made: _has(made.recipe.options, same), parts["training"], trains=True)


def _evaluation(node: Node, counts: ImageCounts) -> Workload:
    """Estimate an evaluation; like it are those by the same protocol on the same network, with the same heads."""
    options, protocol = getattr(node.config, node.protocol), PROTOCOLS[node.protocol]
    if protocol.judges == "clip":
        judged = counts.labelled(options.val_split)
        size = parameter_count(clip_outline(node.config.clip, node.config.demo_clip))
        return Workload({"judging": judged}, lambda made: EvaluateRecord.of(made).parameters == size, judged)
    if protocol.images:
        train, val = _segmentation_images(node)
    else:
        train = counts.labelled(options.train_split, fraction=getattr(options, "train_fraction", 1.0))
        val = counts.labelled(options.val_split)
    training = getattr(options, "training", None)  # None: nothing is trained
    parts = (_training(training, train, val) if training else {}) | dict(protocol.load().parts(train, val))
    chosen = defining_options(options)
    heads: dict[str, Any] = {name: chosen[name] for name in ("all_blocks", "network", "width") if name in chosen}
    backbone = defining_options(node.config.backbone)

    def is_like(made: Artifact) -> bool:
        recipe = EvaluateRecipe.of(made)
        same_network = protocol.judges == "tokens" or _has(made.recipe.options, {"backbone": backbone})
        return same_network and recipe.protocol == node.protocol and _has(recipe.options, heads)

    images = parts.get("training", val) + parts.get("features", 0)
    return Workload(parts, is_like, images, trains=training is not None)


def _segmentation_images(node: Node) -> tuple[int, int]:
    options, drawn = node.config.segmentation, node.config.demo_segmentation
    if not options.path and node.config.images.kind == "demo":
        return drawn.train_images, drawn.val_images
    train, val = segmentation_splits(options)
    return len(train), len(val)


def _training(training: TrainingOptions, train: int, val: int) -> dict[str, int]:
    """Return images that are trained on, and looked at in validations."""
    steps_per_epoch = max(1, train // training.batch_size)
    steps = training.total_steps(steps_per_epoch)
    validations = math.ceil(steps / (steps_per_epoch * training.validation_epochs))
    return {"training": steps * training.batch_size, "validation": val * validations}


def _has(options: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(options.get(name) == value for name, value in wanted.items())


_STAGES: Mapping[str, Callable[[Node, ImageCounts], Workload]] = {
    MakeDemoImages.NAME: _drawn,
    MakeDemoSegmentation.NAME: _drawn_segmentation,
    TrainDemoClip.NAME: _demo_clip,
    ExtractFeatures.NAME: _features,
    FitCodebook.NAME: _clustering,
    TokenizeImages.NAME: _tokens,
    StoreSquares.NAME: _squares,
    FitVQKD.NAME: _vqkd,
    Pretrain.NAME: _pretraining,
    Evaluate.NAME: _evaluation,
}
