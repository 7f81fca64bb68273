"""From images to tokens, by any tokenizer.

    kclip   index_images -> extract_features -> fit_codebook -> tokenize_images
    kmeans  the same, with another frozen encoder in place of CLIP
    pixels  the same, with the pixels of the patches
    vqkd    index_images [-> fit_vqkd] -> tokenize_images
    dalle   index_images -> tokenize_images

The embedded demo draws its images before (`make_demo_images`), and trains its CLIP where one is wanted
(`train_demo_clip`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from models.clip.options import ClipOptions
from models.tokenizers.registry import TOKENIZERS, options_of
from models.vqkd.options import VQKDOptions
from pipeline.chains.graph import Node
from pipeline.configuration.config import KClipBuildConfig
from pipeline.data.inputs import ImageLocation, Images, Network
from pipeline.data.stored_squares import KeptSquares
from pipeline.engine.stage import Source
from pipeline.stages.demo.make_demo_images import MakeDemoImages
from pipeline.stages.demo.train_demo_clip import TrainDemoClip
from pipeline.stages.extract_features import ExtractFeatures
from pipeline.stages.fit_codebook import FitCodebook
from pipeline.stages.fit_vqkd import FitVQKD
from pipeline.stages.index_images import IndexImages
from pipeline.stages.tokenize_images import TokenizeImages
from pipeline.training.vqkd_options import FIT

DEMO = "demo"  # a CLIP that is trained on the spot


@dataclass(frozen=True)
class Tokenized:
    """Images and their tokens, and the nodes that make them.

    Attributes:
        clip: whose features were clustered; None of another tokenizer, or of tokens that are given.
        squares: the node that keeps the images' squares, if pre-trainings want it.
    """

    nodes: tuple[Node, ...]
    images: Images
    tokens: Source
    clip: Network[ClipOptions] | None = None
    squares: Node | None = None


def indexed(config: KClipBuildConfig) -> tuple[tuple[Node, ...], Images]:
    """Return the nodes that draw the demo's images, if those are wanted, and index the images."""
    drawn = MakeDemoImages(config.demo_images) if config.images.kind == "demo" else None
    location = ImageLocation(config.images, drawn)
    index = IndexImages(location)
    stages = (index,) if drawn is None else (drawn, index)
    return tuple(Node(stage, config) for stage in stages), Images(index, location)


def tokenized(config: KClipBuildConfig, *, variant: str = "", squares: KeptSquares | None = None) -> Tokenized:
    """Return all stages up to the tokens of `config.tokenizer`.

    Args:
        variant: of the tokenizer, where a run has several.
        squares: those that are kept while images are decoded for their tokens.
    """
    first, images = indexed(config)
    build, clusters = _Build(config, variant, first, images, squares), TOKENIZERS[config.tokenizer].clusters
    before, network = build.network()
    return build.clustered(network, *before) if clusters else build.direct(network, *before)


def clips_of(config: KClipBuildConfig) -> Iterator[ClipOptions]:
    """Yield the options of the CLIPs that a build uses."""
    options = options_of(config, config.tokenizer)
    if isinstance(options, ClipOptions):
        yield options
    if config.tokenizer == "vqkd" and config.vqkd.checkpoint == FIT:
        yield config.fit_vqkd.teacher


@dataclass(frozen=True)
class _Build:
    config: KClipBuildConfig
    variant: str
    first: tuple[Node, ...]
    images: Images
    squares: KeptSquares | None

    def network(self) -> tuple[tuple[Node, ...], Network[Any]]:
        """Return the nodes that train the network that sees the images, unless it is loaded as its section says, and
        the network itself."""
        config = self.config
        options = options_of(config, config.tokenizer)
        if isinstance(options, ClipOptions):
            return self.available(options)
        if not isinstance(options, VQKDOptions) or options.checkpoint != FIT:
            return (), Network(options)
        before, teacher = self.available(config.fit_vqkd.teacher)
        fitted = FitVQKD(config.fit_vqkd, teacher, self.images, config.decoding)
        its_own = options.model_copy(update={"image_size": config.fit_vqkd.network.image_size})
        return (*before, Node(fitted, config, self.variant)), Network(its_own, fitted)

    def available(self, clip: ClipOptions) -> tuple[tuple[Node, ...], Network[ClipOptions]]:
        """Return the CLIP itself, or the demo's, which is trained."""
        if clip.model != DEMO:
            return (), Network(clip)
        trained = TrainDemoClip(self.config.demo_clip, self.images)
        return (Node(trained, self.config),), Network(clip, trained)

    def clustered(self, encoder: Network[Any], *before: Node) -> Tokenized:
        config, images = self.config, self.images
        features = ExtractFeatures(config.features, images, config.decoding, encoder)
        codebook = FitCodebook(config.codebook, features)
        tokens = TokenizeImages(encoder, images, config.decoding, codebook, features, self.squares)
        nodes = (Node(stage, config, self.variant) for stage in (features, codebook, tokens))
        clip = encoder if isinstance(encoder.options, ClipOptions) else None
        return Tokenized((*self.first, *before, *nodes), images, tokens, clip)

    def direct(self, tokenizer: Network[Any], *before: Node) -> Tokenized:
        tokens = TokenizeImages(tokenizer, self.images, self.config.decoding, squares=self.squares)
        return Tokenized((*self.first, *before, Node(tokens, self.config, self.variant)), self.images, tokens)
