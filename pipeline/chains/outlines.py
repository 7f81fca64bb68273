"""What a configuration's networks will be, before any of them is trained, fetched or loaded: on the meta device."""

from functools import lru_cache

from models.clip.demo import outline_demo_clip
from models.clip.demo_options import DemoClipOptions
from models.clip.encoder import outline_clip
from models.clip.options import ClipOptions
from models.encoders.base import PatchEncoder
from models.encoders.raw_patches import RawPatchEncoder
from models.tokenizers.base import Tokenizer
from models.tokenizers.dalle import outline_dalle
from models.tokenizers.vqkd import outline_vqkd
from models.vqkd.options import PUBLISHED, VQKDOptions, VQKDSizes
from pipeline.chains.tokens import DEMO
from pipeline.configuration.config import KClipBuildConfig
from pipeline.training.vqkd_options import FIT


def encoder_outline(config: KClipBuildConfig) -> PatchEncoder | None:
    """Whose features are clustered; None for tokenizers that bring their codes with them.

    Raises:
        ModelError: there is no such network.
    """
    if config.tokenizer == "kclip":
        return clip_outline(config.clip, config.demo_clip)
    return RawPatchEncoder(config.pixels) if config.tokenizer == "pixels" else None


def tokenizer_outline(config: KClipBuildConfig) -> PatchEncoder | Tokenizer | None:
    """What gives an image its tokens; None where only a file of weights tells. Raises ModelError as above."""
    if config.tokenizer == "dalle":
        return outline_dalle(config.dalle)
    if config.tokenizer != "vqkd":
        return encoder_outline(config)
    network = config.fit_vqkd.network
    if config.vqkd.checkpoint == FIT:
        return _vqkd(config.vqkd.model_copy(update={"image_size": network.image_size}), network.sizes)
    return _vqkd(config.vqkd, VQKDSizes()) if config.vqkd.checkpoint in PUBLISHED else None


@lru_cache(maxsize=8)  # a second for RN50x64, and a plan asks for every cell of a grid
def clip_outline(clip: ClipOptions, demo: DemoClipOptions) -> PatchEncoder:
    """The tower of a CLIP, or of the one that the demo trains. Raises ModelError for an unknown one."""
    return outline_demo_clip(demo, clip) if clip.model == DEMO else outline_clip(clip)


@lru_cache(maxsize=8)
def _vqkd(options: VQKDOptions, sizes: VQKDSizes) -> Tokenizer:
    return outline_vqkd(options, sizes)
