"""Semantic segmentation with UperNet on a plain Vision Transformer: the network of the paper's Tables 4 and 10.

    loss = CE(main) + 0.4 CE(auxiliary)        sum of cross entropies of the labelled pixels / number of all pixels

The pyramid is made from the rows of blocks 3, 5, 7 and 11, as BEiT v2 does (arXiv:2208.06366). Normalisation is
BatchNorm; a trainer on several GPUs makes it synchronous with `nn.SyncBatchNorm.convert_sync_batchnorm`. Stochastic
depth and dropout are drawn from the images' seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from models.errors import ModelError
from models.heads.segmenter_options import SegmenterOptions
from models.heads.upernet import FCNHead, UperNetHead, ViTFeaturePyramid, resized
from models.vit.trunk import drop_path_scales, embed, rows_after

IGNORED = 255  # label of a pixel without a class
LEVELS = 4  # of the pyramid
AUXILIARY_LEVEL = 2  # which of them the auxiliary head reads: the one at the backbone's own resolution


@dataclass(frozen=True)
class SegmentationLogits:
    """The logits of both heads, at the images' size."""

    main: Float[Tensor, "B K H W"]
    auxiliary: Float[Tensor, "B K H W"]


@dataclass(frozen=True)
class SegmentationLoss:
    """The loss of a batch.

    Attributes:
        metrics: detached: `main_loss`, `auxiliary_loss`, and `pixel_accuracy` of the main head, the mean over images of
            the share (0-1) of their labelled pixels that are right.
    """

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
        """Build it for K = `classes`.

        Raises:
            ModelError: the backbone lacks the blocks, or the patches do not fill an image.
        """
        super().__init__()
        require_fitting(options, patch_size=backbone.patch_embed.patch_size[0], depth=len(backbone.blocks))
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

    def forward(self, images: Float[Tensor, "B 3 H W"], seeds: Int64[Tensor, " B"] | None = None) -> SegmentationLogits:
        """Return the logits of both heads.

        Args:
            images: normalised, `image_size` pixels a side.
            seeds: for stochastic depth and dropout in training mode; without them nothing is left out.
        """
        levels, size = self.levels(images, seeds), images.shape[-2:]
        main, auxiliary = self.head(levels, seeds), self.auxiliary(levels[AUXILIARY_LEVEL], seeds)
        return SegmentationLogits(_full(main, size), _full(auxiliary, size))

    def predict(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H W"]:
        """Return the logits of the main head alone."""
        return _full(self.head(self.levels(images)), images.shape[-2:])

    def levels(
        self, images: Float[Tensor, "B 3 H W"], seeds: Int64[Tensor, " B"] | None = None
    ) -> list[Float[Tensor, "B D _ _"]]:
        """Return the pyramid made of the blocks' patch rows, which have not passed the final norm."""
        class_row, patches = embed(self.backbone, images)
        scales = None if seeds is None else drop_path_scales(self.backbone, seeds)
        found = rows_after(self.backbone, torch.cat([class_row, patches], dim=1), self.options.blocks, scales=scales)
        grid = self.backbone.patch_embed.grid_size
        return self.pyramid([rows[:, 1:].transpose(1, 2).unflatten(2, grid) for rows in found])

    def parameter_groups(self, weight_decay: float, *, layer_decay: float) -> list[dict[str, Any]]:
        """Group the parameters for an optimizer by how they learn: `lr_scale` and `weight_decay`.

        Of L blocks, block i learns at layer_decay^(L - i) of the rate, class token, positions and patch embedding at
        layer_decay^(L + 1), pyramid and heads at the full rate. Matrices and kernels decay; vectors, positions and
        class token do not. BEiT v2's released code compares those two names without the prefix that they have in its
        segmentation network, so there they do decay: that is not repeated here.
        """
        groups: list[dict[str, Any]] = param_groups_layer_decay(
            self.backbone,
            weight_decay,
            no_weight_decay_list=self.backbone.no_weight_decay(),
            layer_decay=layer_decay,
        )
        for group in groups:
            group["lr_scale"] *= layer_decay  # timm's last block has the full rate: it sees no layer above it
        for part in (self.pyramid, self.head, self.auxiliary):
            groups += param_groups_weight_decay(part, weight_decay)
        return groups

    def loss(self, logits: SegmentationLogits, labels: UInt8[Tensor, "B H W"]) -> SegmentationLoss:
        """Return the heads' cross entropy, main + auxiliary_weight * auxiliary; label 255 (no class) costs nothing.

        The sum over the labelled pixels is divided by the number of all pixels, as in mmsegmentation, with which BEiT
        v2 was trained (`avg_non_ignore=False`). So every image weighs the same, however a step is cut into pieces:
        divided by the labelled pixels, whose number differs from piece to piece, it would be another loss in each way.
        """
        wanted, valid = labels.long(), labels != IGNORED
        main, auxiliary = (_summed_entropy(each, wanted) / labels.numel() for each in (logits.main, logits.auxiliary))
        best = logits.main.detach().max(1).indices  # argmax is six times as slow on a CPU, a tenth of the demo's step
        right = ((best == wanted) & valid).sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
        metrics = {
            "main_loss": main.detach(),
            "auxiliary_loss": auxiliary.detach(),
            "pixel_accuracy": right.mean(),
        }
        return SegmentationLoss(main + self.options.auxiliary_weight * auxiliary, metrics)


def _full(logits: Float[Tensor, "B K _ _"], size: Sequence[int]) -> Float[Tensor, "B K _ _"]:
    """Resize logits to the images' size, in float32 at least: bfloat16 rounds them to 3 digits."""
    return resized(logits.float() if logits.dtype.itemsize < 4 else logits, size)


def _summed_entropy(logits: Float[Tensor, "B K H W"], wanted: Tensor) -> Float[Tensor, ""]:
    return F.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")


def require_fitting(options: SegmenterOptions, *, patch_size: int, depth: int) -> None:
    """Raise ModelError when a backbone of so many blocks lacks one, or its patches do not fill an image."""
    patch, blocks = patch_size, options.blocks
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
