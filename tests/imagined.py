"""Every preset's artifacts with their real recipes and imagined contents: no encoder is loaded, nothing is trained, an
image is a few bytes. So the fingerprints of all stages of all presets are there within a minute.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from models.clip.options import LOCAL_DIR, ClipOptions
from models.encoders.options import EncoderOptions, RawPatchOptions
from models.encoders.raw_patches import RawPatchEncoder
from models.encoders.timm_encoder import outline_timm
from models.tokenizers.dalle import outline_dalle
from models.tokenizers.dalle_options import DalleOptions
from models.tokenizers.registry import tokenizer_of
from models.tokenizers.vqkd import outline_vqkd
from models.vqkd.options import PUBLISHED, VQKDOptions, VQKDSizes
from pipeline.chains.by_name import CHAINS
from pipeline.chains.graph import run_graph
from pipeline.chains.outlines import clip_outline
from pipeline.chains.tokens import DEMO
from pipeline.configuration.config import KClipBuildConfig
from pipeline.configuration.overrides import apply_overrides
from pipeline.configuration.presets import PRESETS
from pipeline.encoding.network_facts import NetworkFacts
from pipeline.encoding.networks import network_definition
from pipeline.engine.settings import Settings
from pipeline.engine.stage import Made, Stage
from pipeline.engine.tracker import NoTracking
from pipeline.engine.workspace import StageResult, Workspace
from pipeline.stages.demo.make_demo_images import MakeDemoImages
from pipeline.stages.demo.make_demo_segmentation import MakeDemoSegmentation
from pipeline.stages.fit_codebook import FitCodebook
from pipeline.stages.index_images import IndexImages
from pipeline.stages.records import TokensRecord
from pipeline.stages.tokenize_images import TokenizeImages
from storage.artifact import Built, Recipe, build_artifact
from storage.token_store import write_token_store

CLASSES = ("eight", "five", "four", "nine", "one", "seven", "six", "three", "two", "zero")
TRAIN, VAL = 240, 50  # of a class; a step of the paper's presets takes 2048
VOCABULARY = 8192


def imagined_images(folder: Path) -> Path:
    """Return what the presets are pointed at: labelled images, and pictures to segment, none of which can be
    decoded."""
    _write_labelled(folder / "images")
    _write_segmented(folder / "segmentation")
    (folder / "dalle.safetensors").touch()
    return folder


def _write_labelled(folder: Path) -> None:
    for split, count in (("train", TRAIN), ("val", VAL)):
        for place, name in enumerate(CLASSES):
            below = folder / split / name
            below.mkdir(parents=True)
            for number in range(count):
                (below / f"{number:03d}.png").write_bytes(bytes(1 + place + number % 7))


def _write_segmented(folder: Path) -> None:
    for kind in ("images", "annotations"):
        for split in ("training", "validation"):
            below = folder / kind / split
            below.mkdir(parents=True)
            for number in range(20):
                (below / f"{number:03d}.png").write_bytes(bytes(1 + number))


def fingerprints(flow: str, preset: str, images: Path, root: Path) -> dict[str, str]:
    """Return the fingerprint of every stage of a preset, by the name of its call."""
    config = configured(flow, preset, images)
    with _imagined_networks(config):
        graph = CHAINS[flow].graph(config)
        workspace = _Imagining(Settings(data_root=root), config=config)
        done = run_graph(graph, workspace, check=lambda _: None)
    assert not done.failures, done.failures
    return {name: one.artifact.fingerprint for name, one in zip(graph.names, done.results, strict=True)}


def configured(flow: str, preset: str, images: Path) -> KClipBuildConfig:
    """Return the preset, pointed at the imagined data; the demo's too, whose own images take seconds to draw."""
    chosen: KClipBuildConfig = PRESETS[flow][preset]()
    words = [f"images.path={images / 'images'}", f"dalle.checkpoint={images / 'dalle.safetensors'}"]
    if chosen.images.kind == "demo":
        words = []
    elif flow in ("evaluate", "reproduce"):
        words += [f"segmentation.path={images / 'segmentation'}", f"transfer.folder={images / 'images'}"]
        words += ["segmentation.label_zero=other", f"zero_shot.class_names={list(CLASSES)}".replace("'", '"')]
    return apply_overrides(chosen, words)


@dataclass(frozen=True)
class _Imagining(Workspace):
    """A workspace whose artifacts have the content that the stages after them look at, and nothing else."""

    config: Any = None
    vocabularies: dict[str, int] = field(default_factory=dict)  # by the digest of a codebook

    def make(self, stage: Stage, made: Made) -> StageResult:
        recipe = made.recipe(stage)

        def imagine(folder: Path) -> Built:
            if isinstance(stage, IndexImages):
                return stage.build(made, folder, NoTracking())
            if isinstance(stage, MakeDemoImages):
                _write_labelled(folder)
            if isinstance(stage, MakeDemoSegmentation):
                _write_segmented(folder)
            (folder / "fingerprint").write_text(recipe.fingerprint)
            if isinstance(stage, TokenizeImages):
                self._write_tokens(folder, recipe)
                return _tokens_record().built({})
            return Built({"bad_images": 0}, {})

        artifact, _ = build_artifact(self.settings.layout, recipe, imagine)
        if isinstance(stage, FitCodebook):
            self.vocabularies[artifact.digest] = stage.options.vocabulary
        return StageResult(artifact, cached=True, label=stage.label(made))

    def _write_tokens(self, folder: Path, recipe: Recipe) -> None:
        images = (TRAIN + VAL) * len(CLASSES)
        rows, columns = recipe.options["encoder"]["grid"]
        tokens, status = np.zeros((images, rows * columns), np.uint16), np.zeros(images, np.uint8)
        codebook = recipe.inputs.get("codebook", "")
        fitted = self.config.fit_vqkd.network.vocabulary
        is_fitted = recipe.options.get("tokenizer") == "vqkd" and self.config.vqkd.checkpoint == "fit"
        attributes = {
            "tokenizer": recipe.options.get("tokenizer", "kclip"),
            "vocabulary": self.vocabularies.get(codebook, fitted if is_fitted else VOCABULARY),
            "grid": [rows, columns],
            "image_index": recipe.inputs["images"],
            "classes": list(CLASSES),
            **recipe.options,
        }
        parts = [(np.arange(images), tokens, status)]
        write_token_store(folder, parts, images=images, patches=rows * columns, attributes=attributes)


def _tokens_record() -> TokensRecord:
    """Return all that whoever reads a record wants to find; none of it is in a fingerprint."""
    used = {"used_share": 1.0, "perplexity": 1.0, "largest_share": 1.0, "p1": 1.0, "p50": 1.0, "p99": 1.0}
    return TokensRecord(images=(TRAIN + VAL) * len(CLASSES), bad_images=0, vocabulary=VOCABULARY, **used)


@contextmanager
def _imagined_networks(config: Any) -> Iterator[None]:
    """Put networks on the meta device in place of loaded ones, whose digest is that of their options."""

    def encoder(options: ClipOptions | EncoderOptions | RawPatchOptions, *_: object, **__: object) -> Any:
        if isinstance(options, RawPatchOptions):
            return RawPatchEncoder(options)
        if isinstance(options, EncoderOptions):
            return _signed(outline_timm(options), options)
        is_local = options.model.startswith(LOCAL_DIR)
        options = options.model_copy(update={"model": DEMO}) if is_local else options
        return _signed(clip_outline(options, config.demo_clip), options)

    def tokenizer(options: VQKDOptions | DalleOptions, *_: object, **__: object) -> Any:
        if isinstance(options, DalleOptions):
            return _signed(outline_dalle(options), options.model_copy(update={"checkpoint": ""}))
        sizes = VQKDSizes() if options.checkpoint in PUBLISHED else config.fit_vqkd.network.sizes
        is_own = options.checkpoint not in PUBLISHED
        options = options.model_copy(update={"checkpoint": "fit"}) if is_own else options
        return _signed(outline_vqkd(options, sizes), options)

    def definition(clip: ClipOptions, *_: object) -> Mapping[str, Any]:
        return {"weights": encoder(clip).digest, **network_definition(encoder(clip))}

    def facts(options: Any, *_: object) -> NetworkFacts:
        network = encoder(options) if tokenizer_of(options).clusters else tokenizer(options)
        return NetworkFacts(network.name, network.digest, 0, 0, network_definition(network))

    with ExitStack() as stack:
        for module in ("extract_features", "tokenize_images", "fit_vqkd"):
            stack.enter_context(patch(f"pipeline.stages.{module}.facts_of", facts))
        stack.enter_context(patch("pipeline.stages.evaluate.evaluate.zero_shot_definition", definition))
        yield


def _signed(network: Any, options: Any) -> Any:
    network.digest = hashlib.sha256(f"{type(options).__name__} {options.model_dump_json()}".encode()).hexdigest()
    return network
