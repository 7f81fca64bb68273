"""Semantic segmentation with UperNet on a plain Vision Transformer: the network of the paper's Tables 4 and 10.

    loss = CE(main) + 0.4 CE(auxiliary)        cross entropy of logits at the images' size; label 255 does not count

The pyramid is made from the rows of blocks 3, 5, 7 and 11, as BEiT v2 does (arXiv:2208.06366). Normalisation is
BatchNorm; a trainer on several processes makes it synchronous with `nn.SyncBatchNorm.convert_sync_batchnorm`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from pydantic import Field
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.errors import ModelError
from models.heads.upernet import FCNHead, UperNetHead, ViTFeaturePyramid, resized
from models.options import Options

IGNORED = 255  # label of a pixel without a class
LEVELS = 4  # of the pyramid
AUXILIARY_LEVEL = 2  # which of them the auxiliary head reads: the one at the backbone's own resolution


class SegmenterOptions(Options):
    """UperNet on a Vision Transformer."""

    image_size: int = Field(default=512, ge=1)
    """Pixels per side of what the network sees: the crop of training and the window of inference (Table 10: 512)."""

    blocks: tuple[int, int, int, int] = (3, 5, 7, 11)
    """The blocks, counted from 0, whose rows become the pyramid's levels from fine to coarse."""

    channels: int | None = Field(default=None, ge=1)
    """Width of the head; as wide as the backbone unless given, as BEiT v2 does for ViT-B."""

    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    """Squares per side of every pooling of the coarsest level."""

    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of channels that are left out before each classifier."""

    auxiliary_channels: int = Field(default=256, ge=1)
    """Width of the auxiliary head."""

    auxiliary_weight: float = Field(default=0.4, ge=0)
    """Weight of the auxiliary head's loss beside 1 for the main head's."""


@dataclass(frozen=True)
class SegmentationLogits:
    """Of both heads, at the images' size."""

    main: Float[Tensor, "B K H W"]
    auxiliary: Float[Tensor, "B K H W"]


@dataclass(frozen=True)
class SegmentationLoss:
    """Of one batch. `metrics`, detached: `main_loss`, `auxiliary_loss`, and `pixel_accuracy` of the main head (0-1)."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor]


class UperNetSegmenter(nn.Module):
    """A backbone with pyramid and heads.

    The backbone becomes part of the network: its positions are resampled to `image_size` (bicubic, the class token's
    row kept) and what is not read of it (final norm, head, blocks after the last one named) gets no gradient, which
    data-parallel training asks for. New parameters are drawn from `seed`, without touching the global random state.

    In training mode one image alone cannot be normalised (PyTorch raises ValueError): at least two per process, or
    synchronous BatchNorm.
    """

    def __init__(self, backbone: VisionTransformer, classes: int, options: SegmenterOptions, *, seed: int) -> None:
        """`classes`: K. Raises ModelError when the backbone lacks the blocks or the patches do not fill an image."""
        super().__init__()
        _require_fitting(backbone, options)
        backbone.set_input_size(img_size=(options.image_size, options.image_size))
        _freeze_unread(backbone, options.blocks[-1])
        generator = torch.Generator().manual_seed(seed)
        width = backbone.embed_dim
        self.options = options
        self.backbone = backbone
        self.pyramid = ViTFeaturePyramid(width, generator=generator)
        self.head = UperNetHead(
            [width] * LEVELS,
            options.channels or width,
            classes,
            pool_scales=options.pool_scales,
            dropout=options.dropout,
            generator=generator,
        )
        self.auxiliary = FCNHead(
            width, options.auxiliary_channels, classes, dropout=options.dropout, generator=generator
        )

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> SegmentationLogits:
        """Logits of both heads; images are normalised and have `image_size` pixels a side."""
        levels, size = self.levels(images), images.shape[-2:]
        main, auxiliary = self.head(levels), self.auxiliary(levels[AUXILIARY_LEVEL])
        return SegmentationLogits(_full(main, size), _full(auxiliary, size))

    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        """Logits of the main head alone."""
        return _full(self.head(self.levels(images)), images.shape[-2:])

    def levels(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B D _ _"]]:
        """The pyramid: rows of the blocks as they are, not through the final norm, without the class token's."""
        blocks = list(self.options.blocks)
        maps = self.backbone.forward_intermediates(
            images, indices=blocks, norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return self.pyramid(maps)

    def loss(self, logits: SegmentationLogits, labels: UInt8[Tensor, "B H W"]) -> SegmentationLoss:
        """Cross entropy of both heads, main + auxiliary_weight * auxiliary; label 255 does not count.

        Averaged over the pixels that have a class (0 where none has). mmsegmentation, with which BEiT v2 was trained,
        divides by all pixels instead (`avg_non_ignore=False`), so batches with much unlabelled area weigh less there.
        """
        wanted, valid = labels.long(), labels != IGNORED
        count = valid.sum().clamp(min=1)
        main, auxiliary = (_summed_entropy(each, wanted) / count for each in (logits.main, logits.auxiliary))
        right = ((logits.main.detach().argmax(1) == wanted) & valid).sum()
        metrics = {
            "main_loss": main.detach(),
            "auxiliary_loss": auxiliary.detach(),
            "pixel_accuracy": right / count,
        }
        return SegmentationLoss(main + self.options.auxiliary_weight * auxiliary, metrics)


def _full(logits: Float[Tensor, "B K _ _"], size: Sequence[int]) -> Float[Tensor, "B K _ _"]:
    """At the images' size, in float32 at least: bfloat16 rounds logits to 3 digits."""
    return resized(logits.float() if logits.dtype.itemsize < 4 else logits, size)


def _summed_entropy(logits: Float[Tensor, "B K H W"], wanted: Tensor) -> Float[Tensor, ""]:
    return F.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")


def _require_fitting(backbone: VisionTransformer, options: SegmenterOptions) -> None:
    patch, depth, blocks = backbone.patch_embed.patch_size[0], len(backbone.blocks), options.blocks
    # The coarsest level has half as many cells a side as the image has patches.
    if options.image_size % patch or options.image_size < 2 * patch:
        raise ModelError(
            f"segmenter.image_size {options.image_size} with patches of {patch} pixels; choose a multiple of {patch} "
            f"of at least {2 * patch}"
        )
    if blocks[0] < 0 or blocks[-1] >= depth or list(blocks) != sorted(set(blocks)):
        raise ModelError(
            f"segmenter.blocks {blocks} of a backbone with {depth} blocks; name {LEVELS} of 0 to {depth - 1}, ascending"
        )


def _freeze_unread(backbone: VisionTransformer, last_block: int) -> None:
    for module in (backbone.norm, backbone.fc_norm, backbone.head, *backbone.blocks[last_block + 1 :]):
        module.requires_grad_(False)
