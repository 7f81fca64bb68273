"""What of a run cannot be, found before anything is built: options against each other and against the image index.

Nothing is loaded, fetched or decoded. What passes can still fail for an image that cannot be read or a file that
cannot be fetched; a wrong value is refused here, and not when the hours before it are spent.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.clip.options import ClipOptions
from models.clip.weight_files import require_known_weights
from models.encoders.base import PatchEncoder
from models.encoders.options import PACKAGED, PRETRAINED, EncoderOptions
from models.heads.segmenter import require_fitting
from models.objectives import build_objective
from models.tokenizers.base import Tokenizer
from models.tokenizers.registry import options_of
from models.vit.backbones import build_backbone
from models.vit.options import SHAPES
from models.vqkd.learner import require_same_grid
from models.vqkd.options import PUBLISHED
from pipeline.chains.counted_sources import CountedSources
from pipeline.chains.evaluate import unjudged_protocols
from pipeline.chains.graph import Node
from pipeline.chains.outlines import clip_outline, encoder_outline, tokenizer_outline
from pipeline.chains.tokens import DEMO
from pipeline.chains.workloads import sampled_vectors
from pipeline.configuration.config import KClipBuildConfig
from pipeline.data.demo_images import DemoSources
from pipeline.data.demo_segmentation import chosen_names
from pipeline.data.image_counts import ImageCounts
from pipeline.data.stored_squares import KeptSquares
from pipeline.engine.disk_space import require_space
from pipeline.engine.errors import USER_ERRORS, PipelineError
from pipeline.engine.processes import Processes
from pipeline.engine.settings import Settings
from pipeline.engine.words import did_you_mean
from pipeline.stages.demo.make_demo_segmentation import MakeDemoSegmentation
from pipeline.stages.evaluate.captions import caption_names
from pipeline.stages.evaluate.evaluate import Evaluate
from pipeline.stages.evaluate.protocols import PROTOCOLS
from pipeline.stages.evaluate.segmentation import require_company
from pipeline.stages.evaluate.segmented_images import segmentation_splits
from pipeline.stages.extract_features import ExtractFeatures
from pipeline.stages.fit_vqkd import FitVQKD
from pipeline.stages.pretrain import Pretrain
from pipeline.stages.records import IndexRecord
from pipeline.stages.store_squares import StoreSquares
from pipeline.stages.tokenize_images import TokenizeImages
from pipeline.training.options import TrainingOptions
from pipeline.training.vqkd_options import FIT
from storage.artifact import Artifact, is_published
from storage.files import bytes_below
from storage.layout import Layout

Problems = Iterator[str]


@dataclass(frozen=True)
class _Check:
    """One node, the images it is on, and the machine."""

    node: Node
    counts: ImageCounts
    settings: Settings

    @property
    def config(self) -> Any:
        return self.node.config


def require_possible_run(nodes: Sequence[Node], index: Artifact, settings: Settings) -> None:
    """Call `require_possible` for a run whose main images are indexed: all that it does before its first long stage."""
    counted = CountedSources()
    counted.add(nodes[0].source, index.path)
    require_possible(nodes, counted, settings)
    for node in nodes:
        if isinstance(node.stage, StoreSquares):
            _require_room(node.stage.squares, index, settings.layout)


def _require_room(squares: KeptSquares, index: Artifact, layout: Layout) -> None:
    """Require disk for squares that are not there yet: they take the most of all that a run leaves, after the hours of
    the stages before them."""
    recipe, images = squares.recipe(index.digest), IndexRecord.of(index).images
    if not is_published(layout, recipe):
        begun = layout.partial(recipe.stage, recipe.fingerprint)
        require_space(begun, squares.bytes(images) - bytes_below(begun), squares.words(images))


def require_possible(nodes: Sequence[Node], counted: CountedSources, settings: Settings) -> None:
    """Raises PipelineError with a sentence for everything that cannot be, each naming the option and what is allowed;
    whatever `counted` raises of the main images passes through."""
    settings.torch_device()
    if settings.nodes > 1:
        settings.meeting_point()
    problems = dict.fromkeys(unjudged_protocols(nodes))
    counted(nodes[0])  # the main images, before anything is said of them
    for node in nodes:
        try:
            problems |= dict.fromkeys(_problems(_Check(node, counted(node), settings)))
        except USER_ERRORS as error:
            is_main = node.source == nodes[0].source
            option = "images.path=" if is_main else f"transfer.{node.source.kind}="
            problems[str(error).replace("images.path=", option)] = None
    if problems:
        raise PipelineError("; ".join(problems))


def _problems(check: _Check) -> Problems:
    if check.node.kind in _CHECKS:
        yield from _CHECKS[check.node.kind](check)


def _features(check: _Check) -> Problems:
    config, counts = check.config, check.counts
    yield from _clip_problems(check, _clusters_clip(config), "clip", config.clip)
    for split in config.features.splits:
        yield from _missing_split(counts, "features.splits", split)
    with suppress(*USER_ERRORS):  # said above, or with the tokens
        encoder = encoder_outline(config)
        assert encoder is not None
        vectors = sampled_vectors(config, counts, encoder)
        if vectors < config.codebook.vocabulary and any(counts.images.get(split) for split in config.features.splits):
            yield (
                f"codebook.vocabulary={config.codebook.vocabulary}: features.sample_fraction="
                f"{config.features.sample_fraction:g} of the images of features.splits gives {vectors:,} features to "
                "cluster; lower it to at most that, or sample more"
            )


def _tokens(check: _Check) -> Problems:
    config = check.config
    if config.tokenizer == "vqkd" and config.vqkd.checkpoint not in (FIT, *PUBLISHED):
        yield from _missing_file("vqkd.checkpoint", config.vqkd.checkpoint, f"fit, or one of {', '.join(PUBLISHED)}")
    if config.tokenizer == "dalle":
        yield from _missing_file("dalle.checkpoint", config.dalle.checkpoint, "what `mapet convert-dalle` makes")
    try:
        tokenizer_outline(config)
    except USER_ERRORS as error:
        if not _clusters_clip(config):  # whose features say it
            yield str(error)
    options = options_of(config, config.tokenizer)
    if isinstance(options, EncoderOptions) and options.weights not in ("", PRETRAINED, PACKAGED):
        yield from _missing_file("encoder.weights", options.weights, f"{PRETRAINED} or {PACKAGED}")


def _clusters_clip(config: KClipBuildConfig) -> bool:
    return isinstance(options_of(config, config.tokenizer), ClipOptions)


def _vqkd(check: _Check) -> Problems:
    options, counts = check.config.fit_vqkd, check.counts
    yield from _clip_problems(check, True, "fit_vqkd.teacher", options.teacher)
    yield from _splits(counts, "fit_vqkd", options, counts.images)
    images = counts.images.get(options.train_split, 0)
    yield from _batch(check, "fit_vqkd.training", options.training, images, f"images of {options.train_split!r}")
    with suppress(*USER_ERRORS):
        teacher = clip_outline(options.teacher, check.config.demo_clip)
        try:
            require_same_grid(options.network, teacher)
        except USER_ERRORS as error:
            yield f"fit_vqkd.network.image_size={options.network.image_size}: {error}"
        vectors = min(images, options.start_images) * math.prod(teacher.grid)
        if 0 < vectors < options.network.vocabulary:
            yield (
                f"fit_vqkd.network.vocabulary={options.network.vocabulary}: codes start from {vectors:,} patches of "
                f"{min(images, options.start_images):,} images; lower it to at most that, or raise "
                "fit_vqkd.start_images"
            )


def _pretraining(check: _Check) -> Problems:
    config, counts = check.config, check.counts
    options, backbone = config.pretrain, config.backbone
    yield from _splits(counts, "pretrain", options, counts.images)
    images = counts.images.get(options.train_split, 0)
    yield from _batch(check, "training", config.training, images, f"images of {options.train_split!r}")
    try:
        # What an objective asks of a backbone is its patches: the smallest network has them too.
        small = build_backbone(backbone.model_copy(update={"name": "vit_demo"}), seed=0)
    except USER_ERRORS as error:
        yield str(error)
        return
    with suppress(*USER_ERRORS):  # of the tokenizer: said of its own stages
        network = None if options.tokens else tokenizer_outline(config)
        if network is not None and network.grid != (side := small.patch_embed.grid_size):
            rows, columns = network.grid
            yield (
                f"backbone.image_size={backbone.image_size}: an image has {rows} x {columns} tokens of {network.name}, "
                f"the backbone cuts it into {side[0]} x {side[1]} patches; set it to "
                f"{rows * backbone.patch_size}{_size_that_fits(config, network, side[0])}"
            )
            return
    try:
        build_objective(options.objective, small, 2, getattr(config.objectives, options.objective), seed=0)
    except USER_ERRORS as error:
        yield f"objectives.{options.objective}: {error}"


def _size_that_fits(config: KClipBuildConfig, network: PatchEncoder | Tokenizer, side: int) -> str:
    """Say which images would give a timm encoder as many patches per side as the backbone; "" of other networks."""
    if not isinstance(options_of(config, config.tokenizer), EncoderOptions):
        return ""
    return f", or encoder.image_size to {network.preprocessing.image_size // network.grid[0] * side}"


def _evaluation(check: _Check) -> Problems:
    protocol = PROTOCOLS[check.node.protocol]
    if protocol.images:
        yield from _segmentation(check)
        return
    options, counts, section = getattr(check.config, check.node.protocol), check.counts, check.node.section
    labelled = {split: counts.labelled(split) for split in counts.images}
    names = ("val_split",) if protocol.judges == "clip" else ("train_split", "val_split")
    yield from _splits(counts, section, options, labelled, names=names)
    if protocol.judges == "clip":
        with suppress(KeyError):
            yield from _captions(check)
    training = getattr(options, "training", None)
    if training is None:  # nothing is
        return
    fraction = getattr(options, "train_fraction", 1.0)
    images = counts.labelled(options.train_split, fraction=fraction)
    what = f"labelled images of {options.train_split!r}"
    what += f" at {section}.train_fraction={fraction:g}" if fraction < 1 else ""
    yield from _batch(check, f"{section}.training", training, images, what)


def _captions(check: _Check) -> Problems:
    options, counts = check.config.zero_shot, check.counts
    try:
        caption_names(options.class_names, options.templates, counts.classes, classes=counts.class_count)
    except USER_ERRORS as error:
        yield str(error)


def _segmentation(check: _Check) -> Problems:
    options, backbone = check.config.segmentation, check.config.backbone
    try:
        require_fitting(options.network, patch_size=backbone.patch_size, depth=SHAPES[backbone.name].depth)
    except USER_ERRORS as error:
        yield str(error)
    together = check.settings.processes * check.settings.nodes
    with_device = Processes(torch.device(check.settings.torch_device()), size=together)
    images = check.config.demo_segmentation.train_images
    try:
        if options.path or check.config.images.kind != "demo":
            images = len(segmentation_splits(options)[0])
        require_company(options.training.batch_size, check.settings.micro_batch_size, with_device)
    except USER_ERRORS as error:
        yield str(error)
    yield from _batch(check, "segmentation.training", options.training, images, "images to segment")


def _drawn_segmentation(check: _Check) -> Problems:
    drawing, options, sources = check.config.demo_images, check.config.demo_segmentation, DemoSources.load()
    for split in ("train", "val"):
        try:
            chosen_names(sources, drawing, split, getattr(options, f"{split}_images"))
        except USER_ERRORS as error:
            yield f"demo_segmentation.{split}_images: {error}"


def _clip_problems(check: _Check, is_used: bool, section: str, clip: Any) -> Problems:
    if not is_used:
        return
    try:
        clip_outline(clip, check.config.demo_clip)
        if clip.model != DEMO:
            require_known_weights(clip.model, pretrained=clip.pretrained)
    except USER_ERRORS as error:
        yield f"{section}: {error}"


def _splits(
    counts: ImageCounts,
    section: str,
    options: Any,
    images: Mapping[str, int],
    *,
    names: Sequence[str] = ("train_split", "val_split"),
) -> Problems:
    """Yield what is wrong with the splits that the options name. `images`: per split, those that count. A validation
    split that nobody chose may be empty where it is optional."""
    needs_labels = images is not counts.images
    for name in names:
        split = getattr(options, name)
        if name == "val_split" and not needs_labels and split in ("", type(options).model_fields[name].default):
            continue
        problems = list(_missing_split(counts, f"{section}.{name}", split))
        yield from problems
        if not problems and not images.get(split):
            yield f"{section}.{name}={split!r} has no labelled images: class folders (or labels) are needed to judge by"


def _missing_split(counts: ImageCounts, option: str, split: str) -> Problems:
    if not counts.images.get(split):
        meant = did_you_mean(split, counts.images)
        yield f"{option}: the data set has no split {split!r}{meant}; it has {counts.words}"


def _batch(check: _Check, section: str, training: TrainingOptions, images: int, what: str) -> Problems:
    """Yield what is wrong with the batch size. Of no images nothing is said: another sentence says why there are
    none."""
    size, together = training.batch_size, check.settings.processes * check.settings.nodes
    if 0 < images < size:
        yield f"{section}.batch_size={size}: {images:,} {what} do not fill one step; set it to {images} or less"
    if size < together:
        yield f"{section}.batch_size={size} of {together} processes: each needs an image; set it to {together} or more"


def _missing_file(option: str, where: str, expected: str) -> Problems:
    if "://" not in where and not (where and Path(where).expanduser().is_file()):
        yield f"{option}={where!r} is not a file; expected the path of one, or {expected}"


_CHECKS: Mapping[str, Callable[[_Check], Problems]] = {
    MakeDemoSegmentation.NAME: _drawn_segmentation,
    ExtractFeatures.NAME: _features,
    TokenizeImages.NAME: _tokens,
    FitVQKD.NAME: _vqkd,
    Pretrain.NAME: _pretraining,
    Evaluate.NAME: _evaluation,
}
