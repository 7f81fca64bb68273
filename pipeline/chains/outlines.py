"""What a configuration's networks will be, before any of them is trained, fetched or loaded: on the meta device."""

from functools import lru_cache

from models.clip.demo import outline_demo_clip
from models.clip.demo_options import DemoClipOptions
from models.clip.encoder import outline_clip
from models.clip.options import ClipOptions
from models.encoders.base import PatchEncoder
from models.options import Options
from models.tokenizers.base import Tokenizer
from models.tokenizers.registry import TOKENIZERS, options_of, tokenizer_of
from models.tokenizers.vqkd import outline_vqkd
from pipeline.chains.tokens import DEMO
from pipeline.configuration.config import KClipBuildConfig
from pipeline.training.vqkd_options import FIT


def encoder_outline(config: KClipBuildConfig) -> PatchEncoder | None:
    """Return the network whose features are clustered; None for tokenizers that bring their codes with them.

    Raises:
        ModelError: there is no such network.
    """
    outline = tokenizer_outline(config) if TOKENIZERS[config.tokenizer].clusters else None
    assert outline is None or isinstance(outline, PatchEncoder)
    return outline


def tokenizer_outline(config: KClipBuildConfig) -> PatchEncoder | Tokenizer | None:
    """Return the network that gives an image its tokens; None where only a file of weights tells. Raises ModelError as
    above."""
    options = options_of(config, config.tokenizer)
    if isinstance(options, ClipOptions):
        return clip_outline(options, config.demo_clip)
    if config.tokenizer == "vqkd" and config.vqkd.checkpoint == FIT:
        network = config.fit_vqkd.network
        return outline_vqkd(config.vqkd.model_copy(update={"image_size": network.image_size}), network.sizes)
    return _outline(options)


@lru_cache(maxsize=8)  # a second for RN50x64, and a plan asks for every cell of a grid
def clip_outline(clip: ClipOptions, demo: DemoClipOptions) -> PatchEncoder:
    """Return the tower of a CLIP, or of the one that the demo trains. Raises ModelError for an unknown one."""
    return outline_demo_clip(demo, clip) if clip.model == DEMO else outline_clip(clip)


@lru_cache(maxsize=8)
def _outline(options: Options) -> PatchEncoder | Tokenizer | None:
    return tokenizer_of(options).outline(options)
